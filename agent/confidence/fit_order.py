"""What the child that fits heads is asked, and what it answers. No numpy here: whoever asks has none."""

from __future__ import annotations

import msgspec

from agent.confidence.heads import Feature, Layer


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Teach a head for these examples."""

    labels: int  # how many
    answers: tuple[int, ...]  # the label of each example
    embedding: bytes = b""  # float32, one row an example; empty: not tried
    scores: bytes = b""  # the same, one column a label: log-probabilities less their mean
    seed: int = 0


class Compared(msgspec.Struct, frozen=True):
    """What one feature is worth, out of fold."""

    feature: Feature
    accuracy: float
    log_loss: float  # nats an example, at its best temperature


class Fitted(msgspec.Struct, frozen=True, kw_only=True):
    """The head that did best."""

    feature: Feature
    embedding: Layer | None
    scores: Layer | None
    temperature: float
    compared: tuple[Compared, ...]
    probabilities: bytes  # float32, out of fold, one row an example
