"""Why there is no answer, as the error that its caller gets."""

from __future__ import annotations

from agent.errors import (
    Busy,
    ContextOverflow,
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    ModelQuarantined,
    OutriderError,
)
from agent.types import Failure, FailureKind


def refusal(failure: Failure | None) -> OutriderError:
    """Return the error that tells a caller why there is no answer."""
    if failure is None:
        return EngineFailed("there is no local answer; see the daemon's log")
    message = failure.message
    match failure.kind:
        case FailureKind.CONTEXT_OVERFLOW:
            return ContextOverflow(f"{message}: shorten it", param=failure.param or None)
        case FailureKind.BUSY:
            return Busy(message)
        case FailureKind.TIMEOUT:
            return DeadlineExceeded(message)
        case FailureKind.REJECTED:
            return InvalidRequest(message, param=failure.param or None)
        case FailureKind.QUARANTINED:
            return ModelQuarantined(message)
        case _:
            return EngineFailed(message)
