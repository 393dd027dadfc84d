"""From tokens to text that is final: stop strings and split characters are held back."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from agent.types import Token


class TextStream:
    """The text of one answer. Bytes go in token by token, whole characters come out.

    Text that has come out is never taken back: what may still become a stop string, or
    a character whose last bytes are missing, waits inside.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stops = [text.encode() for text in stop if text]
        self._held = bytearray()
        # Token, and where its bytes begin and end in ``_held``; below 0: a part of it is out already.
        self._waiting: deque[tuple[Token, int, int]] = deque()
        self.stopped = False  # a stop string has been met; nothing more may be pushed

    def push(self, token: Token) -> tuple[str, tuple[Token, ...]]:
        """Add a token; return the text and the tokens that are final now."""
        begin = len(self._held)
        self._held += token.text_bytes
        self._waiting.append((token, begin, len(self._held)))
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            return self._cut(min(found))
        return self._release(len(self._held) - max(self._unsure_bytes(), _split_character(self._held)))

    def flush(self) -> tuple[str, tuple[Token, ...]]:
        """Return what is left at the end of the answer. Broken characters become U+FFFD."""
        return self._release(len(self._held))

    def _unsure_bytes(self) -> int:
        """Length of the longest tail that is the beginning of a stop string."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest

    def _cut(self, at: int) -> tuple[str, tuple[Token, ...]]:
        """End the text before the stop string; a token that begins there is no part of it."""
        tokens = [token for token, begin, _ in self._waiting if begin < at]
        text = self._held[:at].decode("utf-8", "replace")
        self._held.clear()
        self._waiting.clear()
        return text, tuple(tokens)

    def _release(self, size: int) -> tuple[str, tuple[Token, ...]]:
        if size <= 0 and self._held:
            return "", ()
        text = self._held[:size].decode("utf-8", "replace")
        del self._held[:size]
        tokens = []
        while self._waiting and self._waiting[0][2] <= size:
            tokens.append(self._waiting.popleft()[0])
        self._waiting = deque((token, begin - size, end - size) for token, begin, end in self._waiting)
        return text, tuple(tokens)


def _split_character(data: bytearray) -> int:
    """Length of an unfinished UTF-8 character at the end of ``data``."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            whole = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if back < whole else 0
        if byte < 0x80:
            return 0
    return 0
