"""Examples of a task in front of a request: the taught inputs nearest to it, with their answers."""

from __future__ import annotations

from collections.abc import Sequence
from operator import mul

from agent.types import Message

MOST = 4  # demonstrations of one request
MOST_KEPT = 200  # to choose from: all are looked at for each request, on the event loop
LONGEST = 2000  # characters of one, input and answer together; longer examples demonstrate nothing

Demonstration = tuple[str, str]  # input, answer


def with_demonstrations(messages: Sequence[Message], shown: Sequence[Demonstration]) -> tuple[Message, ...]:
    """Return the messages with demonstrations before the last one, as earlier turns of the conversation."""
    turns = [turn for told, answer in shown for turn in (Message("user", told), Message("assistant", answer))]
    return (*messages[:-1], *turns, *messages[-1:])


def nearest(vector: Sequence[float], vectors: Sequence[Sequence[float]], count: int = MOST) -> list[int]:
    """Return the indices of the vectors nearest to one, the nearest last: it stands beside the question.

    All are of length 1. Of equals the first is nearer.
    """
    closeness = [(sum(map(mul, vector, other)), -index) for index, other in enumerate(vectors)]
    return [-index for _, index in sorted(closeness)[-count:]] if count else []
