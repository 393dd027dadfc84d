"""Fitting of heads, in a process of its own: ``<executable> fit`` (numpy; the daemon has none).

It reads one ``Order`` or ``AppraisalOrder`` (MessagePack) from stdin and writes what it found to stdout. Features are
compared by stratified cross-validation; the temperature and the pilot scores come from the same
out-of-fold predictions, so they know nothing of the example that they judge.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.confidence.familiarity import ALLOWED_OUTSIDE, Familiarity
from agent.confidence.fit_order import AppraisalOrder, Compared, Fitted, Order
from agent.confidence.heads import Feature, Layer

FOLDS = 5
# Inverse of the L2 penalty: of vectors of length 1, of standardised hidden states and scores.
STRENGTHS = {Feature.EMBEDDING: 30.0, Feature.HIDDEN: 0.01, Feature.SCORES: 0.1}
_GRADIENT = 1e-4  # a fit ends when no component of the gradient, per example, is above it
_ROUNDS, _MEMORY = 200, 8
_NAMES_COUNT_AS = 2  # examples
_CONVINCING = 0.02  # log loss, nats an example: what reading more must gain to be worth the language model's time

Floats = NDArray[np.float64]


def main(argv: Sequence[str]) -> int:
    """Run the child. Returns the exit code."""
    if argv:
        sys.stderr.write("fit takes no arguments\n")
        return 2
    from agent.confidence.appraiser_fitting import fit_appraiser

    order = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Order | AppraisalOrder)
    try:
        fitted = fit(order) if isinstance(order, Order) else fit_appraiser(order)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.buffer.write(msgspec.msgpack.encode(fitted))
    return 0


def fit(order: Order) -> Fitted:
    """Return the best head. Raises ValueError for features that are no numbers, or are not of the examples' number."""
    answers = np.asarray(order.answers, dtype=np.int64)
    folds = stratified_folds(answers, FOLDS, order.seed)
    given = {Feature.EMBEDDING: order.embedding, Feature.HIDDEN: order.hidden, Feature.SCORES: order.scores}
    features = {feature: _matrix(raw, len(answers)) for feature, raw in given.items() if raw}
    if not features:
        raise ValueError("there are no features to teach a head with")
    told = {
        feature: _out_of_fold(values, answers, order.labels, folds, feature) for feature, values in features.items()
    }
    names: Floats | None = None
    if order.names and order.embedding:
        names = _matrix(order.names, order.labels)
        values = features[Feature.EMBEDDING]
        named = _out_of_fold(values, answers, order.labels, folds, Feature.EMBEDDING, names)
        if _at_best(named, answers) < _at_best(told[Feature.EMBEDDING], answers):
            told[Feature.EMBEDDING] = named
        else:
            names = None
    for feature in Feature:  # in the order of what they cost
        if feature not in told and feature.parts <= features.keys():
            told[feature] = np.mean([told[part] for part in features if part in feature.parts], axis=0)
    temperatures = {feature: fit_temperature(logits, answers) for feature, logits in told.items()}
    compared = tuple(
        Compared(
            feature,
            float(np.mean(logits.argmax(axis=1) == answers)),
            mean_log_loss(logits / temperatures[feature], answers),
        )
        for feature, logits in told.items()
    )
    best = _best(compared)
    layers = {
        feature: _layer(values, answers, order.labels, feature, names)
        for feature, values in features.items()
        if feature in best.parts
    }
    return Fitted(
        feature=best,
        embedding=layers.get(Feature.EMBEDDING),
        hidden=layers.get(Feature.HIDDEN),
        scores=layers.get(Feature.SCORES),
        temperature=temperatures[best],
        compared=compared,
        by_names=names is not None and Feature.EMBEDDING in best.parts,
        probabilities=np.exp(log_softmax(told[best] / temperatures[best])).astype("<f4").tobytes(),
        familiarity=familiarity(features[Feature.EMBEDDING], answers, folds) if Feature.EMBEDDING in layers else None,
    )


def familiarity(values: Floats, answers: NDArray[np.int64], folds: NDArray[np.int64]) -> Familiarity | None:
    """Return which vectors are like these, which have these answers; None where a fold has nothing to compare with."""
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    units = values / np.where(lengths > 0, lengths, 1.0)
    nearest = np.full(len(answers), np.nan)
    for fold in np.unique(folds):
        inside, outside = folds == fold, folds != fold
        if outside.any():
            nearest[inside] = (units[inside] @ _centres(units[outside], answers[outside]).T).max(axis=1)
    if not np.isfinite(nearest).all():
        return None
    centres = _centres(units, answers)
    return Familiarity(centres.astype("<f4").tobytes(), float(np.quantile(nearest, ALLOWED_OUTSIDE)))


def _centres(units: Floats, answers: NDArray[np.int64]) -> Floats:
    means = np.stack([units[answers == label].mean(axis=0) for label in np.unique(answers)])
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    unit: Floats = means / np.where(lengths > 0, lengths, 1.0)
    return unit


def _best(compared: Sequence[Compared]) -> Feature:
    """Return the cheapest feature that no dearer one beats clearly; they come in the order of what they cost."""
    best = compared[0]
    for one in compared[1:]:
        if one.log_loss < best.log_loss - _CONVINCING:
            best = one
    return best.feature


def _matrix(raw: bytes, rows: int) -> Floats:
    numbers = np.frombuffer(raw, dtype="<f4").astype(np.float64)
    if not rows or numbers.size % rows or not numbers.size:
        raise ValueError(f"{numbers.size} features are not of {rows} examples")
    if not np.isfinite(numbers).all():
        raise ValueError("a feature is not finite")
    return numbers.reshape(rows, -1)


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


def _out_of_fold(
    values: Floats,
    answers: NDArray[np.int64],
    labels: int,
    folds: NDArray[np.int64],
    feature: Feature,
    names: Floats | None = None,
) -> Floats:
    told = np.zeros((len(answers), labels))
    for fold in range(FOLDS):
        left = folds == fold
        if not left.any() or left.all():
            raise ValueError("there are too few examples to compare features: five or more are needed")
        weights, bias = _taught(values[~left], answers[~left], labels, feature, names)
        told[left] = log_softmax(values[left] @ weights.T + bias)
    return told


def _at_best(logits: Floats, answers: NDArray[np.int64]) -> float:
    return mean_log_loss(logits / fit_temperature(logits, answers), answers)


def _layer(values: Floats, answers: NDArray[np.int64], labels: int, feature: Feature, names: Floats | None) -> Layer:
    weights, bias = _taught(values, answers, labels, feature, names)
    return Layer(weights=weights.astype("<f4").tobytes(), bias=tuple(bias.tolist()))


def _taught(
    values: Floats, answers: NDArray[np.int64], labels: int, feature: Feature, names: Floats | None = None
) -> tuple[Floats, Floats]:
    """Fit, with scores and hidden states standardised first; the result reads features as they come.

    ``names``: vectors of the labels' names, which count as examples beside other vectors.
    """
    strength = STRENGTHS[feature]
    if feature is Feature.EMBEDDING:
        if names is not None:
            values = np.vstack([values, *[names] * _NAMES_COUNT_AS])
            answers = np.concatenate([answers, *[np.arange(labels)] * _NAMES_COUNT_AS])
        return logistic(values, answers, labels, strength)
    mean, scale = values.mean(axis=0), np.maximum(values.std(axis=0), 1e-6)
    weights, bias = logistic((values - mean) / scale, answers, labels, strength)
    weights = weights / scale
    return weights, bias - weights @ mean


def logistic(values: Floats, answers: NDArray[np.int64], labels: int, strength: float) -> tuple[Floats, Floats]:
    """Return weights and bias that minimise ``strength * sum(log loss) + |weights|^2 / 2``, by L-BFGS.

    Nocedal and Wright, "Numerical Optimization", algorithm 7.4, with backtracking.
    """
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


def _least(loss: Callable[[Floats], tuple[float, Floats]], point: Floats) -> Floats:
    value, gradient = loss(point)
    steps: list[tuple[Floats, Floats]] = []
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
        if float(step @ turn) > 1e-12:
            steps = [*steps[-(_MEMORY - 1) :], (step, turn)]
        settled = value - new_value < 1e-9 * max(1.0, abs(value))
        point, value, gradient = tried, new_value, new_gradient
        if settled:
            break
    return point


def _scaled(gradient: Floats, steps: Sequence[tuple[Floats, Floats]]) -> Floats:
    """Multiply by the estimated inverse of the curvature (the two loops of L-BFGS)."""
    found = gradient.copy()
    parts = []
    for step, turn in reversed(steps):
        part = float(step @ found) / float(step @ turn)
        found -= part * turn
        parts.append(part)
    if steps:
        step, turn = steps[-1]
        found *= float(step @ turn) / float(turn @ turn)
    for (step, turn), part in zip(steps, reversed(parts), strict=True):
        found += (part - float(turn @ found) / float(step @ turn)) * step
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
    """Return the temperature with the least log loss (Guo et al., ICML 2017), by golden section on its logarithm."""
    ratio = (np.sqrt(5.0) - 1) / 2
    low, high = np.log(0.02), np.log(20.0)
    while high - low > 1e-3:
        one, other = high - ratio * (high - low), low + ratio * (high - low)
        of_one, of_other = (mean_log_loss(logits / np.exp(at), answers) for at in (one, other))
        low, high = (low, other) if of_one < of_other else (one, high)
    return float(np.exp((low + high) / 2))
