"""Fitting of heads, in a process of its own: ``<executable> fit`` (numpy; the daemon has none).

It reads one ``Order`` or ``AppraisalOrder`` (MessagePack) from stdin and writes what it found to stdout. Features are
compared by stratified cross-validation; the temperature and the pilot scores come from the same
out-of-fold predictions, so they know nothing of the example that they judge.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.confidence.familiarity import ALLOWED_OUTSIDE, Familiarity
from agent.confidence.fit_order import AppraisalOrder, Compared, Fitted, Order
from agent.confidence.heads import Feature
from agent.confidence.logistic import (
    FOLDS,
    Floats,
    fit_temperature,
    log_softmax,
    logistic,
    mean_log_loss,
    stratified_folds,
)
from agent.confidence.vector_fitting import VectorFit, fit_vectors, layer_of

# Inverse of the L2 penalty, of standardised features.
STRENGTHS = {Feature.HIDDEN: 0.01, Feature.SCORES: 0.1}
_CONVINCING = 0.02  # log loss, nats an example: what reading more must gain to be worth the language model's time


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
    if any(not (folds == fold).any() or (folds == fold).all() for fold in range(FOLDS)):
        raise ValueError("there are too few examples to compare features: five or more are needed")
    by_vectors: VectorFit | None = None
    told: dict[Feature, Floats] = {}
    for feature, values in features.items():
        if feature is Feature.EMBEDDING:
            names = _matrix(order.names, order.labels) if order.names else None
            by_vectors = fit_vectors(order, values, answers, folds, names)
            told[feature] = by_vectors.told
        else:
            told[feature] = _out_of_fold(values, answers, order.labels, folds, STRENGTHS[feature])
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
        feature: layer_of(*_taught(features[feature], answers, order.labels, strength))
        for feature, strength in STRENGTHS.items()
        if feature in best.parts
    }
    read = by_vectors if Feature.EMBEDDING in best.parts else None
    return Fitted(
        feature=best,
        embedding=read.layer if read else None,
        hidden=layers.get(Feature.HIDDEN),
        scores=layers.get(Feature.SCORES),
        temperature=temperatures[best],
        compared=compared,
        by_names=read is not None and read.by_names,
        probabilities=np.exp(log_softmax(told[best] / temperatures[best])).astype("<f4").tobytes(),
        familiarity=familiarity(features[Feature.EMBEDDING], answers, folds) if read else None,
        wording=read.wording if read else None,
        neighbours=read.neighbours if read else None,
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


def _out_of_fold(
    values: Floats, answers: NDArray[np.int64], labels: int, folds: NDArray[np.int64], strength: float
) -> Floats:
    told = np.zeros((len(answers), labels))
    for fold in np.unique(folds):
        left = folds == fold
        weights, bias = _taught(values[~left], answers[~left], labels, strength)
        told[left] = log_softmax(values[left] @ weights.T + bias)
    return told


def _taught(values: Floats, answers: NDArray[np.int64], labels: int, strength: float) -> tuple[Floats, Floats]:
    """Fit standardised features; the result reads them as they come."""
    mean, scale = values.mean(axis=0), np.maximum(values.std(axis=0), 1e-6)
    weights, bias = logistic((values - mean) / scale, answers, labels, strength)
    weights = weights / scale
    return weights, bias - weights @ mean
