"""Fitting of the part of a head that reads an encoder's vectors, and of what stands beside them, in numpy.

Whether the labels' names teach, how much the words of a text count and how much its nearest examples, is found one
after the other by cross-validation; what does not gain is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agent.confidence import neighbours as near
from agent.confidence.fit_order import Order
from agent.confidence.heads import Layer
from agent.confidence.logistic import Floats, fit_temperature, log_softmax, logistic, mean_log_loss
from agent.confidence.neighbours import Neighbours
from agent.confidence.wording import BUCKETS, Wording, folded, rarity_of, weighed

STRENGTH = 30.0  # inverse of the L2 penalty, of vectors of length 1
WORDS_COUNT = (0.5, 1.0)  # lengths of what a text is worded like, beside a vector of length 1
NEIGHBOURS_COUNT = (0.1, 0.2, 0.3, 0.4)  # of a nearness beside a logit at its temperature
_NAMES_COUNT_AS = 2  # examples
_GAINS = 0.002  # log loss, nats an example: less is not worth the time
_MOST_WORDED = 1 << 18  # examples times labels; above, words would take minutes to fit and vectors have enough

Answers = NDArray[np.int64]


class VectorFit(NamedTuple):
    """What reads vectors, and what it told of each example out of fold."""

    told: Floats  # log-probabilities
    layer: Layer
    wording: Wording | None
    neighbours: Neighbours | None
    by_names: bool


class _Read:
    """Features of the examples, and of the labels' names where those teach, too."""

    def __init__(self, examples: Floats, names: Floats | None, answers: Answers, labels: int) -> None:
        self.names = names
        self._labels, self._answers = labels, answers
        rows = examples if names is None else np.vstack([examples, names])
        # Weights are sums of what taught: with fewer rows than features they are sought among those alone.
        self._basis = np.linalg.qr(rows.T)[0] if rows.shape[1] > len(rows) else None
        turned = rows if self._basis is None else rows @ self._basis
        self._examples, self._names = turned[: len(examples)], turned[len(examples) :]

    def weights(self) -> tuple[Floats, Floats]:
        """Return weights and bias by all examples, of features as they come."""
        weights, bias = self._taught(np.ones(len(self._answers), dtype=bool))
        return weights if self._basis is None else weights @ self._basis.T, bias

    def out_of_fold(self, folds: Answers) -> Floats:
        """Return the log-probabilities of each example, by those outside of its fold."""
        told = np.zeros((len(self._answers), self._labels))
        for fold in np.unique(folds):
            left = folds == fold
            weights, bias = self._taught(~left)
            told[left] = log_softmax(self._examples[left] @ weights.T + bias)
        return told

    def _taught(self, chosen: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        values, given = self._examples[chosen], self._answers[chosen]
        if len(self._names):
            values = np.vstack([values, *[self._names] * _NAMES_COUNT_AS])
            given = np.concatenate([given, *[np.arange(self._labels)] * _NAMES_COUNT_AS])
        return logistic(values, given, self._labels, STRENGTH)


def fit_vectors(order: Order, values: Floats, answers: Answers, folds: Answers, names: Floats | None) -> VectorFit:
    """Return the fit. ``names``: vectors of the labels' names, which may teach, too."""
    labels, width = order.labels, values.shape[1]
    read = _Read(values, None, answers, labels)
    told = read.out_of_fold(folds)
    least = _at_best(told, answers)
    if names is not None:
        tried = _Read(values, names, answers, labels)
        by_names = tried.out_of_fold(folds)
        if (loss := _at_best(by_names, answers)) < least:
            read, told, least = tried, by_names, loss
    rarity: list[float] = []
    counts = 0.0
    if order.texts and len(answers) * labels <= _MOST_WORDED:
        kept_names = read.names
        rarity, words = _worded([*order.texts, *(order.name_texts if kept_names is not None else ())])
        without = least
        for tried_count in WORDS_COUNT:
            beside = tried_count * words
            with_names = None if kept_names is None else np.hstack([kept_names, beside[len(values) :]])
            tried = _Read(np.hstack([values, beside[: len(values)]]), with_names, answers, labels)
            worded = tried.out_of_fold(folds)
            if (loss := _at_best(worded, answers)) < min(least, without - _GAINS):
                read, told, least, counts = tried, worded, loss, tried_count
    weights, bias = read.weights()
    kept = _Examples(values, answers, names if read.names is not None else None, labels)
    weight, told = _with_neighbours(kept, told, folds, least)
    return VectorFit(
        told=log_softmax(told),
        layer=layer_of(weights[:, :width], bias),
        wording=Wording(
            rarity=np.asarray(rarity, dtype="<f4").tobytes(),
            weights=(weights[:, width:] * counts).astype("<f4").tobytes(),
        )
        if counts
        else None,
        neighbours=kept.kept(weight) if weight else None,
        by_names=read.names is not None,
    )


def layer_of(weights: Floats, bias: Floats) -> Layer:
    """Return weights and bias as they are stored."""
    return Layer(weights=weights.astype("<f4").tobytes(), bias=tuple(bias.tolist()))


def _worded(texts: Sequence[str]) -> tuple[list[float], Floats]:
    found = [folded(text) for text in texts]
    rarity = rarity_of(found)
    values = np.zeros((len(texts), BUCKETS))
    for row, one in enumerate(found):
        for bucket, value in weighed(one, rarity).items():
            values[row, bucket] = value
    return rarity, values


def _with_neighbours(kept: _Examples, told: Floats, folds: Answers, least: float) -> tuple[float, Floats]:
    """Return how much neighbours count, and what is told with them; 0 where they gain nothing."""
    nearness = np.zeros_like(told)
    for fold in np.unique(folds):
        nearness[folds == fold] = kept.nearness(folds != fold, told, folds == fold)
    temperature = fit_temperature(told, kept.answers)
    best, found, without = 0.0, told, least
    for count in NEIGHBOURS_COUNT:
        weight = count * temperature
        tried = told + weight * nearness
        if (loss := _at_best(tried, kept.answers)) < min(least, without - _GAINS):
            best, found, least = weight, tried, loss
    return best, found


class _Examples(NamedTuple):
    """What neighbours are chosen from."""

    values: Floats
    answers: Answers
    names: Floats | None
    labels: int

    def chosen(self, among: NDArray[np.bool_]) -> tuple[Floats, Answers]:
        """Return unit vectors of the first examples of each label, and whose they are."""
        most = min(near.MOST_OF_A_LABEL, max(1, near.MOST_KEPT // self.labels))
        rows = [np.flatnonzero(among & (self.answers == label))[:most] for label in range(self.labels)]
        values = self.values[np.concatenate(rows)]
        of = np.repeat(np.arange(self.labels), [len(part) for part in rows])
        if self.names is not None:
            values, of = np.vstack([values, self.names]), np.concatenate([of, np.arange(self.labels)])
            order = np.argsort(of, kind="stable")
            values, of = values[order], of[order]
        return _units(values), of

    def nearness(self, among: NDArray[np.bool_], told: Floats, asked: NDArray[np.bool_]) -> Floats:
        """Return what ``AppliedNeighbours`` adds at weight 1."""
        kept, of = self.chosen(among)
        counts = np.bincount(of, minlength=self.labels)
        grown = np.exp(near.SHARPNESS * (_units(self.values[asked]) @ kept.T - 1)) @ np.eye(self.labels)[of]
        found: Floats = near.SHARPNESS + np.log(np.maximum(grown, 1e-300) / np.maximum(counts, 1))
        rank = np.argsort(np.argsort(-told[asked], axis=1, kind="stable"), axis=1)
        told_of = (rank < near.ASKED) & (counts > 0)
        floor = np.where(told_of, found, np.inf).min(axis=1, keepdims=True)
        return np.where(told_of, found, np.where(np.isfinite(floor), floor, 0.0))

    def kept(self, weight: float) -> Neighbours:
        """Return them as they are stored."""
        units, of = self.chosen(np.ones(len(self.answers), dtype=bool))
        scales = np.maximum(np.abs(units).max(axis=1, keepdims=True) / near.STEPS, 1e-12)
        return Neighbours(
            vectors=np.round(units / scales).astype("i1").tobytes(),
            scales=scales.astype("<f4").tobytes(),
            counts=tuple(np.bincount(of, minlength=self.labels).tolist()),
            weight=weight,
        )


def _units(values: Floats) -> Floats:
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    units: Floats = values / np.where(lengths > 0, lengths, 1.0)
    return units


def _at_best(logits: Floats, answers: Answers) -> float:
    return mean_log_loss(logits / fit_temperature(logits, answers), answers)
