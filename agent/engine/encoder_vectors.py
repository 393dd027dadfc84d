"""What an encoder makes of some texts, as vectors."""

from __future__ import annotations

import array
import time
from collections.abc import Sequence

import msgspec

from agent.encoder import EncoderTask
from agent.engine import frames
from agent.engine.model_supervisor import ModelSupervisor
from agent.scores import Vectors
from agent.types import Failure, FailureKind, ModelFormat


async def encoder_vectors(
    model: ModelSupervisor, name: str, texts: Sequence[str], scope: str | None, left_ms: float
) -> Vectors:
    """Return the vector of each text, of its beginning where it is too long. Problems end in ``failure``."""
    if model.format is not ModelFormat.ONNX_ENCODER:
        return Vectors(
            model=name, failure=Failure(FailureKind.REJECTED, f"model {name} writes; it is no encoder", "model")
        )
    started = time.monotonic()
    ask = frames.Encode(id=0, texts=tuple(texts), truncate=True, scope=scope)
    encoded = await model.encode(ask, left_ms)
    status = model.status()
    told = Vectors(
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
    if traits.task is not EncoderTask.EMBED:
        reason = f"model {name} gives no vector of a text: it was made to {traits.task}"
        return msgspec.structs.replace(told, failure=Failure(FailureKind.REJECTED, reason, "model"))
    numbers = array.array("f", encoded.rows)
    rows = tuple(tuple(numbers[index * encoded.width : (index + 1) * encoded.width]) for index in range(len(texts)))
    return msgspec.structs.replace(told, vectors=rows)
