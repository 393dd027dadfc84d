"""How much of the prompts goes into one step, and when a long one had better wait its turn. Pure.

Two costs are weighed. A piece of a prompt holds up all who decode until the step is over, and
small pieces are slow: on two cores a prompt of 512 tokens takes half as long again in pieces of
64 as in pieces of 256. And every token of a step looks at the cells of all sequences, also those
that are not its own: 16 prompts of 512 tokens, computed while all 16 hold their places, take
over half as long again as four at a time. Four at a time lose nothing else: a processor is fully
used by them, so the first answers are there sooner and the last ones not later.
"""

from __future__ import annotations

from collections.abc import Sequence as List

from agent.engine.runtime import Chunk
from agent.engine.sequence import Sequence

STALL_S = 0.5  # for which a piece of a prompt may hold up those who decode, when as many wait as decode
FEWEST_TOKENS = 64  # smaller pieces cost too much for what they spare the others
NEW_SHARE = 0.3  # weight of the latest step in the mean
TOGETHER = 4  # sequences that always may run beside each other
CROWDED_TOKENS = 2048  # of all sequences, above which a long prompt waits
LONG_TOKENS = 128
SOON_TOKENS = 256  # to go at most for somebody who will make room


class PrefillPace:
    """Sizes the pieces by the times of the steps."""

    def __init__(self) -> None:
        self._token_s: float | None = None  # seconds of one prompt token

    def observe(self, chunks: List[Chunk], seconds: float) -> None:
        """Take the time of a step; one that only decodes says nothing here."""
        tokens = sum(len(chunk.tokens) for chunk in chunks)
        if tokens - len(chunks) < FEWEST_TOKENS:
            return
        token_s = seconds / tokens
        self._token_s = token_s if self._token_s is None else self._token_s + NEW_SHARE * (token_s - self._token_s)

    def room(self, decoding: int, prefilling: int, most: int) -> int:
        """Return how many prompt tokens, at most ``most``, the next step gets beside ``decoding`` sequences.

        The more wait for their first token, the longer those who decode wait for their next.
        """
        if not decoding:
            return most
        if self._token_s is None:
            return min(FEWEST_TOKENS, most)
        stall_s = STALL_S * max(1.0, prefilling / decoding)
        affordable = most if self._token_s * most <= stall_s else int(stall_s / self._token_s)
        return min(most, max(FEWEST_TOKENS, affordable))


def waits_its_turn(own_tokens: int, running: List[Sequence]) -> bool:
    """Return whether a prompt with so many tokens of its own is better begun when one of ``running`` has ended.

    Only where one of them ends soon for certain: nobody waits behind answers of unknown length.
    """
    if len(running) < TOGETHER or own_tokens < LONG_TOKENS:
        return False
    held = sum(len(other.prompt) - other.cached + other.generated for other in running)
    soonest = min(other.limit - other.generated for other in running)
    return held + own_tokens > CROWDED_TOKENS and soonest <= SOON_TOKENS
