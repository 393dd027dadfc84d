"""A taught head: a linear map from features of a text to its labels, applied in pure Python.

Features are the vector of an encoder, the log-probabilities that the language model gives to
the labels, or both (then the two log-probabilities of a label are averaged). ``fitting`` makes
heads; its process has numpy, this one does not.
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

VERSION = 1


class Feature(StrEnum):
    """What a head reads."""

    EMBEDDING = "embedding"  # the vector of an encoder
    SCORES = "scores"  # log-probabilities of the labels by the language model
    BOTH = "both"


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
    temperature: float = 1.0
    encoder: str = ""  # name of the encoder, and the digest of its file
    encoder_digest: str = ""
    model: str = ""  # name of the language model that scored the labels, and its digest
    model_digest: str = ""
    taught: int = 0  # examples
    accuracy: float = 0.0  # out of fold, on the examples that taught it
    compared: tuple[tuple[str, float, float], ...] = ()  # feature, accuracy, log loss of each that was tried
    pilot: tuple[tuple[float, bool], ...] = ()  # score and rightness of each taught example, out of fold
    texts: tuple[bytes, ...] = ()  # digests of the inputs that taught it
    created_at_ms: int = 0
    familiarity: Familiarity | None = None  # which vectors are like those that taught it; None: not kept

    @property
    def id(self) -> str:
        """What names this very head."""
        parts = (VERSION, self.task_digest, self.labels, self.feature, self.embedding, self.scores, self.temperature)
        shape = (*parts, self.encoder_digest, self.model_digest)
        return hashlib.sha256(msgspec.msgpack.encode(shape)).hexdigest()[:16]


def text_digest(text: str) -> bytes:
    """Return what tells that an input was seen before, without keeping it."""
    return hashlib.sha256(" ".join(text.split()).casefold().encode("utf-8", "surrogatepass")).digest()[:8]


class AppliedHead:
    """A head made ready: its weights as numbers."""

    def __init__(self, head: Head) -> None:
        """Raises ValueError for weights that are not of the labels' number, or not finite."""
        self.head = head
        self.id = head.id
        self._embedding = _rows(head.embedding, len(head.labels)) if head.embedding else None
        self._scores = _rows(head.scores, len(head.labels)) if head.scores else None
        wanted = {Feature.EMBEDDING: (True, False), Feature.SCORES: (False, True), Feature.BOTH: (True, True)}
        if (self._embedding is not None, self._scores is not None) != wanted[head.feature]:
            raise ValueError(f"a head of feature {head.feature} has not the layers that it needs")
        if not math.isfinite(head.temperature) or head.temperature <= 0:
            raise ValueError("the temperature is not a positive number")

    @property
    def dimensions(self) -> int:
        """Length of the encoder's vectors; 0 where none is read."""
        return len(self._embedding[0][0]) if self._embedding else 0

    def is_familiar(self, vector: Sequence[float]) -> bool:
        """Return whether a vector is like those that taught the head; true where that was not kept."""
        return self.head.familiarity is None or self.head.familiarity.holds(vector)

    def probabilities(self, vector: Sequence[float], logprobs: Sequence[float]) -> tuple[float, ...]:
        """Return the probability of each label, in the order of the head's labels; empty for no finite figure."""
        given = [*(vector if self._embedding else ()), *(logprobs if self._scores else ())]
        if not all(map(math.isfinite, given)):
            return ()
        told = []
        if self._embedding:
            told.append(log_softmax(_logits(self._embedding, vector)))
        if self._scores:
            told.append(log_softmax(_logits(self._scores, centred(logprobs))))
        mean = [math.fsum(column) / len(told) / self.head.temperature for column in zip(*told, strict=True)]
        return tuple(map(math.exp, log_softmax(mean)))


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
