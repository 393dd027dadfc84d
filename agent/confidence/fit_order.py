"""What the child that fits is asked, and what it answers. No numpy here: whoever asks has none."""

from __future__ import annotations

import msgspec

from agent.confidence.appraisers import Weights
from agent.confidence.familiarity import Familiarity
from agent.confidence.heads import Feature, Layer
from agent.confidence.neighbours import Neighbours
from agent.confidence.wording import Wording


class Order(msgspec.Struct, frozen=True, kw_only=True, tag="head"):
    """Teach a head for these examples."""

    labels: int  # how many
    answers: tuple[int, ...]  # the label of each example
    embedding: bytes = b""  # float32, one row an example; empty: not tried
    names: bytes = b""  # the same of the labels' own names, one row a label: a first example of each; empty: not tried
    texts: tuple[str, ...] = ()  # what the vectors are of; empty: words are not tried
    name_texts: tuple[str, ...] = ()  # what the vectors of names are of
    hidden: bytes = b""  # float32, one row an example: last hidden states of the language model
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
    hidden: Layer | None
    scores: Layer | None
    temperature: float
    compared: tuple[Compared, ...]
    by_names: bool = False  # the labels' names taught, too: out of fold that was better
    probabilities: bytes  # float32, out of fold, one row an example
    familiarity: Familiarity | None = None  # of the examples' vectors, where the head reads them
    wording: Wording | None = None
    neighbours: Neighbours | None = None


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of answers (or of their fields), with whether each was right."""

    names: tuple[str, ...]
    figures: bytes  # float64, little-endian, one row an answer
    right: tuple[bool, ...]


class AppraisalOrder(msgspec.Struct, frozen=True, kw_only=True, tag="appraiser"):
    """Teach an appraiser by these answers."""

    answer: Judged
    fields: Judged | None = None
    sampled: Judged | None = None  # the same answers as ``answer``, with the agreement of samples among the figures
    seed: int = 0


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """A fitted model."""

    weights: Weights
    probabilities: tuple[float, ...]  # out of fold
    log_loss: float  # of those, nats an answer
    auroc: float  # of those


class Appraised(msgspec.Struct, frozen=True, kw_only=True):
    """The models of an appraiser."""

    answer: Fit
    fields: Fit | None = None
    sampled: Fit | None = None
