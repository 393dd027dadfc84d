"""Names in texts, by an installed model that tags: what the redaction of what leaves asks the engine for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from agent.engine import frames
from agent.errors import CannotRedact
from agent.escalation.personal_data import CannotRedactNow
from agent.text_settings import RedactionSettings
from agent.types import FailureKind

LONGEST_S = 50.0
_FOR_GOOD = frozenset({FailureKind.REJECTED, FailureKind.CONTEXT_OVERFLOW})


class TaggingEngine(Protocol):
    """Where encoders run."""

    async def encode(self, model: str, ask: frames.Encode, left_ms: float) -> frames.Encoded: ...


class NameTagger:
    """Asks the model that the configuration names at the moment."""

    def __init__(self, engine: TaggingEngine, redaction: Callable[[], RedactionSettings]) -> None:
        self._engine = engine
        self._redaction = redaction

    async def tag(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Return where names are in each text. Raises CannotRedact, or CannotRedactNow while the model is away."""
        redaction = self._redaction()
        wanted = redaction.name_labels
        encoded = await self._engine.encode(
            redaction.names, frames.Encode(id=0, texts=tuple(texts), scope=None), LONGEST_S * 1000
        )
        if failure := encoded.failure:
            kind = CannotRedact if failure.kind in _FOR_GOOD else CannotRedactNow
            raise kind(f"names cannot be searched by {redaction.names}: {failure.message}")
        if len(encoded.spans) != len(texts):
            raise CannotRedact(f"names cannot be searched by {redaction.names}: it was not made to tag texts")
        return [
            [(span.start, span.end) for span in spans if not wanted or span.label in wanted] for spans in encoded.spans
        ]
