"""Multinomial logistic regression and what goes with it, in numpy: for the child that fits.

``logistic`` is L-BFGS (Nocedal and Wright, "Numerical Optimization", algorithm 7.4) with backtracking.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FOLDS = 5  # of a cross-validation
_GRADIENT = 1e-4  # a fit ends when no component of the gradient, per example, is above it
_ROUNDS, _MEMORY = 200, 8

Floats = NDArray[np.float64]


def stratified_folds(answers: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Return a fold for each example, with every label spread over the folds as evenly as it goes."""
    folds = np.zeros(len(answers), dtype=np.int64)
    chance = np.random.default_rng(seed)
    at = 0
    for label in np.unique(answers):
        members = chance.permutation(np.flatnonzero(answers == label))
        folds[members] = (np.arange(len(members)) + at) % count
        at += len(members)
    return folds


def logistic(values: Floats, answers: NDArray[np.int64], labels: int, strength: float) -> tuple[Floats, Floats]:
    """Return weights and bias that minimise ``strength * sum(log loss) + |weights|^2 / 2``."""
    count, width = values.shape
    given = np.zeros((count, labels))
    given[np.arange(count), answers] = 1.0

    def loss(point: Floats) -> tuple[float, Floats]:
        weights, bias = point[: labels * width].reshape(labels, width), point[labels * width :]
        told = log_softmax(values @ weights.T + bias)
        rest = (np.exp(told) - given) / count
        penalty = weights / (strength * count)
        value = -float(np.sum(told * given)) / count + 0.5 * float(np.sum(weights * penalty))
        return value, np.concatenate([(rest.T @ values + penalty).ravel(), rest.sum(axis=0)])

    point = _least(loss, np.zeros(labels * width + labels))
    return point[: labels * width].reshape(labels, width), point[labels * width :]


class _Step(NamedTuple):
    """A step of the search, how the gradient turned on it, and the product of both."""

    step: Floats
    turn: Floats
    bend: float


def _least(loss: Callable[[Floats], tuple[float, Floats]], point: Floats) -> Floats:
    value, gradient = loss(point)
    steps: list[_Step] = []
    for _ in range(_ROUNDS):
        if np.abs(gradient).max() < _GRADIENT / 10:
            break
        way = -_scaled(gradient, steps)
        slope = float(gradient @ way)
        pace = 1.0 if steps else min(1.0, 1.0 / float(np.abs(gradient).sum()))
        while True:
            tried = point + pace * way
            new_value, new_gradient = loss(tried)
            if new_value <= value + 1e-4 * pace * slope or pace < 1e-10:
                break
            pace /= 2
        step, turn = tried - point, new_gradient - gradient
        bend = float(step @ turn)
        if bend > 1e-12:
            steps = [*steps[-(_MEMORY - 1) :], _Step(step, turn, bend)]
        settled = value - new_value < 1e-9 * max(1.0, abs(value))
        point, value, gradient = tried, new_value, new_gradient
        if settled:
            break
    return point


def _scaled(gradient: Floats, steps: Sequence[_Step]) -> Floats:
    """Multiply by the estimated inverse of the curvature (the two loops of L-BFGS)."""
    found = gradient.copy()
    parts = []
    for one in reversed(steps):
        part = float(one.step @ found) / one.bend
        found -= part * one.turn
        parts.append(part)
    if steps:
        last = steps[-1]
        found *= last.bend / float(last.turn @ last.turn)
    for one, part in zip(steps, reversed(parts), strict=True):
        found += (part - float(one.turn @ found) / one.bend) * one.step
    return found


def log_softmax(logits: Floats) -> Floats:
    """Return the logarithms of the softmax of each row."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def mean_log_loss(logits: Floats, answers: NDArray[np.int64]) -> float:
    """Return the mean negative log-probability of the right labels, nats."""
    return -float(np.mean(log_softmax(logits)[np.arange(len(answers)), answers]))


def fit_temperature(logits: Floats, answers: NDArray[np.int64]) -> float:
    """Return the temperature with the least log loss (Guo et al., ICML 2017), by golden section on its logarithm.

    Targets are smoothed as Platt's are, by one example in all: where every answer is right, no temperature would be low
    enough, and all scores would be the same.
    """
    doubt = 1.0 / (len(answers) + 2)

    def loss(temperature: float) -> float:
        told = log_softmax(logits / temperature)
        right = float(np.mean(told[np.arange(len(answers)), answers]))
        return -(1 - doubt) * right - doubt * float(np.mean(told))

    ratio = (np.sqrt(5.0) - 1) / 2
    low, high = np.log(0.02), np.log(20.0)
    while high - low > 1e-3:
        one, other = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, other) if loss(float(np.exp(one))) < loss(float(np.exp(other))) else (one, high)
    return float(np.exp((low + high) / 2))
