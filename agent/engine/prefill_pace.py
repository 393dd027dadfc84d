"""How much of the prompts goes into one step. Pure.

A piece of a prompt holds up all who decode until the step is over, and who comes in the meantime,
or leaves, waits for its end. So its size follows from the time that it takes on this machine, with
this model. Larger pieces are faster as a whole: attention shares its tiles out better, and tokens
that lie together are skipped together by those of other prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.engine.runtime import Chunk

STEP_S = 1.2  # that a piece may take, about, when it holds up nobody
STALL_S = 0.5  # for which, about, a piece may hold up those who decode, when as many wait as decode
TILE_TOKENS = 64  # attention works in tiles of so many tokens: a smaller piece costs nearly as much
NEW_SHARE = 0.5  # weight of the latest step in the mean


class PrefillPace:
    """Sizes the pieces by the times of the steps."""

    def __init__(self) -> None:
        self._token_s: float | None = None  # seconds of one token in a step with a piece

    def observe(self, chunks: Sequence[Chunk], seconds: float) -> None:
        """Take the time of a step; one without a piece of a tile or more says nothing."""
        tokens = sum(len(chunk.tokens) for chunk in chunks)
        if tokens - len(chunks) + 1 < TILE_TOKENS:
            return
        token_s = seconds / tokens
        self._token_s = token_s if self._token_s is None else self._token_s + NEW_SHARE * (token_s - self._token_s)

    def room(self, decoding: int, prefilling: int, most: int) -> int:
        """Return how many prompt tokens, at most ``most``, the next step gets beside ``decoding`` sequences.

        The more wait for their first token, the longer those who decode wait for their next.
        """
        if self._token_s is None:
            return min(TILE_TOKENS, most)
        span_s = min(STEP_S, STALL_S * max(1.0, prefilling / decoding)) if decoding else STEP_S
        if self._token_s * most <= span_s:
            return most
        return min(most, max(1, round(span_s / self._token_s / TILE_TOKENS)) * TILE_TOKENS)
