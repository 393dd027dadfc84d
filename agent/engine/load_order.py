"""What a worker is told to load."""

from __future__ import annotations

from collections.abc import Sequence

from agent.compute import DeviceVerdict
from agent.engine import frames
from agent.settings import EngineSettings
from agent.types import ModelFile


def load_order(file: ModelFile, settings: EngineSettings, verdicts: Sequence[DeviceVerdict] = ()) -> frames.Load:
    """Return the order for a model under these settings; the model's own limit of context holds."""
    return frames.Load(
        model=file,
        context_tokens=min(settings.context_tokens, file.context_tokens),
        parallel=settings.parallel,
        waiting_line=settings.waiting_line,
        threads=settings.threads,
        confine=settings.confine,
        kv_type=settings.kv_type,
        thinking_budget_tokens=settings.thinking_budget_tokens,
        drafting=settings.drafting,
        weights=settings.weights,
        devices=settings.devices,
        verdicts=tuple(verdicts),
        memory_bytes=settings.memory_mib << 20,
    )
