"""A taught head: a linear map from features of a text to its labels, applied in pure Python.

Features are the vector of an encoder, the language model's last hidden state at the end of the
prompt, the log-probabilities that it gives to the labels, or several of them (then the
log-probabilities of a label are averaged). Beside a vector stand, where cross-validation gained by
it, the words of the text (``wording``) and the nearest taught examples (``neighbours``). ``fitting`` makes heads; its process has numpy, this
one does not.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Sequence
from enum import StrEnum
from operator import mul

import msgspec

from agent.confidence.familiarity import Familiarity
from agent.confidence.neighbours import AppliedNeighbours, Neighbours
from agent.confidence.wording import AppliedWording, Wording

VERSION = 1


class Feature(StrEnum):
    """What a head reads."""

    EMBEDDING = "embedding"  # the vector of an encoder; the words of the text and its neighbours beside it
    HIDDEN = "hidden"  # the last hidden state of the language model
    SCORES = "scores"  # log-probabilities of the labels by the language model
    EMBEDDING_HIDDEN = "embedding+hidden"
    BOTH = "both"  # embedding and scores
    HIDDEN_SCORES = "hidden+scores"
    ALL = "all"

    @property
    def parts(self) -> frozenset[Feature]:
        """The single features that it is made of."""
        return _PARTS.get(self, frozenset({self}))


_PARTS = {
    Feature.EMBEDDING_HIDDEN: frozenset({Feature.EMBEDDING, Feature.HIDDEN}),
    Feature.BOTH: frozenset({Feature.EMBEDDING, Feature.SCORES}),
    Feature.HIDDEN_SCORES: frozenset({Feature.HIDDEN, Feature.SCORES}),
    Feature.ALL: frozenset({Feature.EMBEDDING, Feature.HIDDEN, Feature.SCORES}),
}


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """``logits = weights . features + bias``, one row a label."""

    weights: bytes  # float32, little-endian, row by row
    bias: tuple[float, ...]


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """A head and all that it depends on. ``labels`` are sorted."""

    task: str
    task_digest: str
    labels: tuple[str, ...]
    feature: Feature
    embedding: Layer | None = None
    scores: Layer | None = None
    hidden: Layer | None = None
    temperature: float = 1.0
    encoder: str = ""  # name of the encoder, and the digest of its file
    encoder_digest: str = ""
    model: str = ""  # name of the language model that was asked, and its digest
    model_digest: str = ""
    taught: int = 0  # examples
    accuracy: float = 0.0  # out of fold, on the examples that taught it
    compared: tuple[tuple[str, float, float], ...] = ()  # feature, accuracy, log loss of each that was tried
    pilot: tuple[tuple[float, bool], ...] = ()  # score and rightness of each taught example, out of fold
    texts: tuple[bytes, ...] = ()  # digests of the inputs that taught it
    created_at_ms: int = 0
    familiarity: Familiarity | None = None  # which vectors are like those that taught it; None: not kept
    wording: Wording | None = None
    neighbours: Neighbours | None = None

    @property
    def id(self) -> str:
        """What names this very head."""
        parts = (VERSION, self.task_digest, self.labels, self.feature, self.embedding, self.scores, self.temperature)
        shape = (*parts, self.encoder_digest, self.model_digest)
        # What an earlier release did not have counts where it is there: its heads keep their names.
        whole = (*shape, *(part for part in (self.hidden, self.wording, self.neighbours) if part))
        return hashlib.sha256(msgspec.msgpack.encode(whole)).hexdigest()[:16]


def text_digest(text: str) -> bytes:
    """Return what tells that an input was seen before, without keeping it."""
    return hashlib.sha256(" ".join(text.split()).casefold().encode("utf-8", "surrogatepass")).digest()[:8]


class AppliedHead:
    """A head made ready: its weights as numbers."""

    def __init__(self, head: Head) -> None:
        """Raises ValueError for weights that are not of the labels' number, or not finite."""
        self.head = head
        self.id = head.id
        layers = {Feature.EMBEDDING: head.embedding, Feature.HIDDEN: head.hidden, Feature.SCORES: head.scores}
        self._layers = {feature: _rows(layer, len(head.labels)) for feature, layer in layers.items() if layer}
        if self._layers.keys() != head.feature.parts:
            raise ValueError(f"a head of feature {head.feature} has not the layers that it needs")
        if (head.wording or head.neighbours) and Feature.EMBEDDING not in self._layers:
            raise ValueError("words and neighbours stand beside vectors, and this head reads none")
        self._wording = AppliedWording(head.wording, len(head.labels)) if head.wording else None
        self._neighbours = AppliedNeighbours(head.neighbours, len(head.labels)) if head.neighbours else None
        if not math.isfinite(head.temperature) or head.temperature <= 0:
            raise ValueError("the temperature is not a positive number")

    @property
    def dimensions(self) -> int:
        """Length of the encoder's vectors; 0 where none is read."""
        found = self._layers.get(Feature.EMBEDDING)
        return len(found[0][0]) if found else 0

    def is_familiar(self, vector: Sequence[float]) -> bool:
        """Return whether a vector is like those that taught the head; true where that was not kept."""
        return self.head.familiarity is None or self.head.familiarity.holds(vector)

    def probabilities(
        self, text: str, vector: Sequence[float] = (), logprobs: Sequence[float] = (), hidden: Sequence[float] = ()
    ) -> tuple[float, ...]:
        """Return the probability of each label, in the order of the head's labels; empty for no finite figure.

        ``text`` is what the vector is of.
        """
        given = {Feature.EMBEDDING: vector, Feature.HIDDEN: hidden, Feature.SCORES: logprobs}
        told = []
        for feature, rows in self._layers.items():
            figures = given[feature]
            if not all(map(math.isfinite, figures)):
                return ()
            logits = _logits(rows, centred(figures) if feature is Feature.SCORES else figures)
            if feature is Feature.EMBEDDING:
                logits = self._read(text, vector, logits)
            told.append(log_softmax(logits))
        mean = [math.fsum(column) / len(told) / self.head.temperature for column in zip(*told, strict=True)]
        return tuple(map(math.exp, log_softmax(mean)))

    def _read(self, text: str, vector: Sequence[float], logits: list[float]) -> list[float]:
        """Add what the words and the nearest examples say."""
        if self._wording:
            logits = [one + other for one, other in zip(logits, self._wording.logits(text), strict=True)]
        return self._neighbours.beside(logits, vector) if self._neighbours else logits


def centred(logprobs: Sequence[float]) -> list[float]:
    """Return log-probabilities less their mean: how likely labels are at all says nothing of which."""
    mean = math.fsum(logprobs) / len(logprobs)
    return [one - mean for one in logprobs]


_Rows = tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]


def _rows(layer: Layer, labels: int) -> _Rows:
    numbers = array("f")
    numbers.frombytes(layer.weights)
    width, left = divmod(len(numbers), labels)
    if left or not width or len(layer.bias) != labels:
        raise ValueError(f"a layer of {len(numbers)} weights is not of {labels} labels")
    if not all(map(math.isfinite, numbers)) or not all(map(math.isfinite, layer.bias)):
        raise ValueError("a weight is not finite")
    return tuple(tuple(numbers[row * width : (row + 1) * width]) for row in range(labels)), layer.bias


def _logits(rows: _Rows, features: Sequence[float]) -> list[float]:
    weights, bias = rows
    if len(features) != len(weights[0]):
        raise ValueError(f"{len(features)} features came to a head of {len(weights[0])}")
    return [sum(map(mul, row, features)) + offset for row, offset in zip(weights, bias, strict=True)]


def log_softmax(figures: Sequence[float]) -> list[float]:
    """Return the logarithms of the softmax."""
    top = max(figures)
    total = top + math.log(math.fsum(math.exp(figure - top) for figure in figures))
    return [figure - total for figure in figures]
