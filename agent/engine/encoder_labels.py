"""What an encoder that was trained for some labels says of a text, as scores of labels."""

from __future__ import annotations

import array
import math
import time
from collections.abc import Sequence

import msgspec

from agent.encoder import EncoderTask
from agent.engine import frames
from agent.engine.model_supervisor import ModelSupervisor
from agent.engine.worker_status import EncoderTraits
from agent.scores import Scores
from agent.types import Failure, FailureKind

FOREVER_MS = 86_400_000.0


async def encoder_scores(
    model: ModelSupervisor, name: str, text: str, labels: Sequence[str], scope: str | None, left_ms: float | None
) -> Scores:
    """Return the log-probability of each of these labels. Problems end in ``failure``."""
    started = time.monotonic()
    ask = frames.Encode(id=0, texts=(text,), scope=scope)
    encoded = await model.encode(ask, FOREVER_MS if left_ms is None else left_ms)
    status = model.status()
    told = Scores(
        trained=True,
        prompt_tokens=encoded.prompt_tokens,
        duration_ms=(time.monotonic() - started) * 1000,
        model=name,
        model_digest=status.model_digest,
        runtime=status.runtime,
        failure=encoded.failure,
    )
    traits = model.traits.encoder if model.traits else None
    if encoded.failure or traits is None:
        return told
    if fault := _fault(traits, labels):
        return msgspec.structs.replace(told, failure=fault)
    of = dict(zip(traits.labels, array.array("f", encoded.rows), strict=True))
    chosen = tuple(of[label] for label in labels)
    return msgspec.structs.replace(
        told,
        logprobs=chosen,
        token_counts=(1,) * len(labels),
        mass=min(1.0, math.fsum(map(math.exp, chosen))),
        best=chosen.index(max(chosen)),
    )


def _fault(traits: EncoderTraits, labels: Sequence[str]) -> Failure | None:
    """Return why these labels cannot be told apart by this model."""
    if traits.task is not EncoderTask.CLASSIFY:
        return Failure(FailureKind.REJECTED, f"the model does not classify: it was made to {traits.task}", "model")
    if traits.several:
        reason = "the model's labels do not exclude each other: it cannot choose one of them"
        return Failure(FailureKind.REJECTED, reason, "model")
    if unknown := [label for label in labels if label not in traits.labels]:
        reason = f"the model does not know the label {unknown[0]!r}; its labels are {', '.join(traits.labels)}"
        return Failure(FailureKind.REJECTED, reason, "labels")
    return None
