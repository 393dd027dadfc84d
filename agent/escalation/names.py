"""Where names are in a text, as a model that tags pieces says: the Recogniser of redaction.

The model runs in its worker; what asks for it is a thread beside the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence

from agent.escalation.personal_data import CannotRedactNow

LONGEST_PIECE = 400  # characters: taggers know names best in a sentence or two, and read a few hundred tokens
OVERLAP = 80  # characters that two pieces have in common: a name on the border is whole in one of them
PATIENCE_S = 60.0

Tag = Callable[[Sequence[str]], Awaitable[Sequence[Sequence[tuple[int, int]]]]]
"""Returns the pieces of each text that are names, as start and end. Raises CannotRedactNow."""


class NamesByModel:
    """Implements Recogniser. Called from any thread but that of the loop."""

    def __init__(self, tag: Tag, loop: asyncio.AbstractEventLoop) -> None:
        self._tag = tag
        self._loop = loop

    def __call__(self, text: str) -> list[tuple[int, int]]:
        """Return where names are. Raises CannotRedactNow while the model cannot be asked."""
        pieces = list(_pieces(text))
        if not pieces:
            return []
        asked = asyncio.run_coroutine_threadsafe(self._told([piece for _, piece in pieces]), self._loop)
        try:
            told = asked.result(PATIENCE_S)
        except TimeoutError as error:
            asked.cancel()
            raise CannotRedactNow("the model that finds names did not answer in time") from error
        return [(at + start, at + end) for (at, _), found in zip(pieces, told, strict=True) for start, end in found]

    async def _told(self, texts: Sequence[str]) -> Sequence[Sequence[tuple[int, int]]]:
        return await self._tag(texts)


def names_notice(model: str) -> str:
    """Return what is to be known of names in a text that leaves."""
    return f"names are searched by {model}, which misses some" if model else "names are NOT removed"


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """Yield where a piece begins, and the piece; they overlap, and begin between words."""
    at = 0
    while at < len(text):
        piece = text[at : at + LONGEST_PIECE]
        if piece.strip():
            yield at, piece
        if at + LONGEST_PIECE >= len(text):
            return
        space = text.find(" ", at + LONGEST_PIECE - OVERLAP, at + LONGEST_PIECE)
        at = space + 1 if space >= 0 else at + LONGEST_PIECE - OVERLAP
