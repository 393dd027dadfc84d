"""Measuring an encoder on this device, beside its source: do the same texts lie near each other?"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent import device
from agent.engine import frames
from agent.engine.supervisor import EnginePool
from agent.errors import EngineFailed
from agent.evaluation.asking import Tell
from agent.evaluation.labelled import wilson
from agent.models.quality import EncoderFigures, Quality, Speed
from agent.settings import EngineSettings
from agent.strain import wait_while_strained
from agent.types import ModelFile

MOST_TEXTS = 100
AT_ONCE = 10
_SHORTEST = 20  # characters of a text
_PATIENCE_MS = 60_000.0

Rows = NDArray[np.float32]


def measure_encoder(
    model: ModelFile,
    reference: ModelFile | None,
    text: str,
    engine: EngineSettings,
    tell: Tell,
    *,
    now_ms: int,
) -> Quality:
    """Measure on the lines of ``text``. Seconds; raises EngineFailed for a model that gives no vectors."""
    lines = [line.strip() for line in text.splitlines() if len(line.strip()) >= _SHORTEST][:MOST_TEXTS]
    rows, speed, runtime = asyncio.run(_read(model, lines, engine, tell))
    figures = EncoderFigures(texts=len(lines))
    if reference is not None:
        expected, _, _ = asyncio.run(_read(reference, lines, engine, tell))
        figures = compare(rows, expected)
    return Quality(
        digest=model.sha256,
        measured_at_ms=now_ms,
        machine=device.profile().cpu_model,
        runtime=runtime,
        reference=reference.name if reference else None,
        reference_digest=reference.sha256 if reference else None,
        texts=(),
        instructions_followed=0,
        instructions_asked=0,
        needles=(),
        speed=speed,
        encoder=figures,
    )


def compare(rows: Rows, expected: Rows) -> EncoderFigures:
    """Return how far two encoders agree on the same texts, one row each.

    Vectors of different widths cannot be compared one by one, but their neighbours can.
    """
    own, other = _unit(rows), _unit(expected)
    same = int((_neighbours(own) == _neighbours(other)).sum())
    cosines = (own * other).sum(1) if own.shape == other.shape else None
    return EncoderFigures(
        texts=len(rows),
        cosine=float(cosines.mean()) if cosines is not None else None,
        least_cosine=float(cosines.min()) if cosines is not None else None,
        neighbours=wilson(same, len(rows)),
    )


def _unit(rows: Rows) -> NDArray[np.float64]:
    values = np.nan_to_num(rows.astype(np.float64))
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values / np.where(norms > 0, norms, 1.0), np.float64)


def _neighbours(unit: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for each text which other one is nearest to it."""
    near = unit @ unit.T
    np.fill_diagonal(near, -np.inf)
    return np.asarray(near.argmax(1), np.int64)


async def _read(model: ModelFile, texts: Sequence[str], engine: EngineSettings, tell: Tell) -> tuple[Rows, Speed, str]:
    pool = EnginePool(msgspec.structs.replace(engine, parallel=1, idle_unload_s=0.0), lambda _: model)

    async def encode(some: Sequence[str]) -> frames.Encoded:
        await asyncio.to_thread(wait_while_strained, lambda reason: tell(f"paused: {reason}"))
        ask = frames.Encode(id=0, texts=tuple(some), truncate=True, scope=None)
        found = await pool.encode(model.name, ask, _PATIENCE_MS)
        if found.failure:
            raise EngineFailed(f"model {model.name}: {found.failure.message}")
        if not found.width:
            raise EngineFailed(f"model {model.name} gives no row of numbers for a text: it cannot be compared")
        return found

    try:
        await encode(texts[:1])  # the weights are read from disk only once
        singles, parts, tokens = [], [], 0
        began = time.perf_counter()
        for at in range(0, len(texts), AT_ONCE):
            encoded = await encode(texts[at : at + AT_ONCE])
            parts.append(np.frombuffer(encoded.rows, "<f4").reshape(-1, encoded.width))
            tokens += encoded.prompt_tokens
            tell(f"{model.name}: {min(at + AT_ONCE, len(texts))} of {len(texts)} texts read")
        taken_s = time.perf_counter() - began
        for text in texts[:AT_ONCE]:
            began = time.perf_counter()
            await encode([text])
            singles.append(time.perf_counter() - began)
        (status,) = pool.status().values()
        speed = Speed(
            tokens_per_second=tokens / max(taken_s, 1e-6),
            first_token_ms=statistics.median(singles) * 1000,
            prompt_tokens=tokens // len(texts),
            memory_bytes=status.rss_bytes or 0,
        )
        return np.concatenate(parts), speed, status.runtime
    finally:
        await pool.stop(0)
