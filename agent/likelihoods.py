"""What was computed of the labels of a request. A value only."""

from __future__ import annotations

import msgspec


class LabelScores(msgspec.Struct, frozen=True, kw_only=True):
    """What was computed of each label of a request, in the order of its labels.

    Log-probabilities are sums over a label's tokens, in nats, of the unconstrained distribution. A
    taught head gives ``probabilities``; where it reads vectors alone, the rest is empty.
    """

    logprobs: tuple[float, ...] = ()
    token_counts: tuple[int, ...] = ()
    mass: float | None = None  # probability that an answer begins with any of the labels
    content_free: tuple[tuple[float, ...], ...] = ()  # the same of inputs without content, one row each
    trained: bool = False  # by a model made for these labels: there is nothing to correct by
    earlier: tuple[float, ...] = ()  # the mean over earlier inputs of the task
    likeness: tuple[float, ...] = ()  # to the input, of each label: -1..1, by the vectors of an encoder
    encoder: str = ""  # digest of that encoder
    probabilities: tuple[float, ...] = ()
    head: str = ""  # id of the taught head
