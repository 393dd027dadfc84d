"""A taught appraiser: how likely a written answer is right, by a small logistic model of its figures. Pure Python.

``appraiser_fitting`` makes appraisers in the child that has numpy. An appraiser belongs to one task, one model file
and one version of the figures; with any other it says nothing.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Mapping, Sequence
from operator import mul

import msgspec

from agent.confidence.maps import sigmoid

VERSION = 1
ESTIMATOR = f"taught_answer@{VERSION}"
GREY_ZONE = 0.1  # of the probability, at either side of where a threshold is expected: only there samples are drawn
MOST_SAMPLES = 8
SAMPLE_TEMPERATURE = 0.7
FURTHEST = 4.0  # standard deviations of the examples: figures beyond them count as this far


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """A logistic model: ``sigmoid(bias + sum of weights * standardised figures)``."""

    names: tuple[str, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float

    def probability(self, figures: Mapping[str, float]) -> float | None:
        """Return the probability, 0..1; None where a figure is missing or not finite."""
        row = [figures.get(name, math.nan) for name in self.names]
        if not all(map(math.isfinite, row)):
            return None
        standard = (
            max(-FURTHEST, min(FURTHEST, (value - mean) / scale))
            for value, mean, scale in zip(row, self.means, self.scales, strict=True)
        )
        return sigmoid(self.bias + math.fsum(map(mul, self.weights, standard)))


class Demonstrations(msgspec.Struct, frozen=True, kw_only=True):
    """Taught examples that may be shown, with the vectors by which the nearest are found."""

    inputs: tuple[str, ...]
    answers: tuple[str, ...]
    vectors: bytes  # float32, little-endian, one row an example
    encoder: str
    encoder_digest: str
    count: int  # how many are shown


class Appraiser(msgspec.Struct, frozen=True, kw_only=True):
    """An appraiser and all that it depends on."""

    task: str
    task_digest: str
    model: str
    model_digest: str
    runtime: str
    version: int  # of the figures
    answer: Weights
    fields: Weights | None = None  # of one field of a JSON answer; its pointers are figures too
    sampled: Weights | None = None  # with the agreement of samples
    samples: int = 0  # drawn in the grey zone; 0: none
    grey: tuple[float, float] = (1.0, 0.0)  # probabilities between which samples are drawn
    demonstrations: Demonstrations | None = None
    taught: int = 0  # examples
    right: int = 0  # answers of the local model that were right
    auroc: float | None = None  # out of fold
    log_loss: float = 0.0  # out of fold, nats an example
    compared: tuple[tuple[str, int, int], ...] = ()  # how answered, right, of how many
    pilot: tuple[tuple[float, bool], ...] = ()  # probability and rightness of each taught example, out of fold
    texts: tuple[bytes, ...] = ()  # digests of the inputs that taught it
    created_at_ms: int = 0

    @property
    def id(self) -> str:
        """What names this very appraiser."""
        parts = (VERSION, self.task_digest, self.model_digest, self.runtime, self.version, self.answer, self.fields)
        shape = (*parts, self.sampled, self.samples, self.grey, self.demonstrations)
        return hashlib.sha256(msgspec.msgpack.encode(shape)).hexdigest()[:16]

    @property
    def estimator(self) -> str:
        """What a calibration is keyed by."""
        return f"{ESTIMATOR}:{self.id}"

    def is_grey(self, probability: float) -> bool:
        """Whether samples may change what becomes of an answer."""
        return bool(self.samples) and self.sampled is not None and self.grey[0] <= probability <= self.grey[1]


def check(appraiser: Appraiser) -> None:
    """Raise ValueError for what cannot be applied."""
    for weights in (appraiser.answer, appraiser.fields, appraiser.sampled):
        if weights is None:
            continue
        lengths = {len(weights.names), len(weights.means), len(weights.scales), len(weights.weights)}
        figures = [*weights.means, *weights.scales, *weights.weights, weights.bias]
        if len(lengths) != 1 or not all(map(math.isfinite, figures)) or any(scale <= 0 for scale in weights.scales):
            raise ValueError("the weights are not of one length, or not finite")
    shown = appraiser.demonstrations
    if shown is not None:
        count = len(shown.inputs)
        if len(shown.answers) != count or not count or len(shown.vectors) % (4 * count) or not shown.vectors:
            raise ValueError("the demonstrations, their answers and vectors are not of one number")
    if not 0 <= appraiser.samples <= MOST_SAMPLES:
        raise ValueError(f"at most {MOST_SAMPLES} samples are drawn")


def field_figures(row: Sequence[float], names: Sequence[str], pointer: str) -> dict[str, float]:
    """Return the figures of a field as a model of fields reads them: a list's elements are one field."""
    figures = dict(zip(names, row, strict=True))
    figures[f"at {general(pointer)}"] = 1.0
    return figures


def general(pointer: str) -> str:
    """Return a pointer with ``*`` for the place in a list."""
    return "/".join("*" if step.isdigit() else step for step in pointer.split("/"))


def vectors_of(appraiser: Appraiser) -> list[tuple[float, ...]]:
    """Return the vectors of the demonstrations of an appraiser, one a demonstration."""
    kept = appraiser.demonstrations
    if kept is None:
        return []
    figures = array("f", kept.vectors)
    width = len(figures) // len(kept.inputs)
    return [tuple(figures[at : at + width]) for at in range(0, len(figures), width)]
