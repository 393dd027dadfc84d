"""Fitting of appraisers, in the child that fits heads (numpy; the daemon has none)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agent.confidence.appraisers import FURTHEST, Weights
from agent.confidence.fit_order import AppraisalOrder, Appraised, Fit, Judged
from agent.confidence.logistic import FOLDS, Floats, logistic, mean_log_loss, stratified_folds

STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # inverse of the L2 penalty, of standardised figures
REPEATS = 3  # of the cross-validation that chooses among them


def fit_appraiser(order: AppraisalOrder) -> Appraised:
    """Return the models that an order asks for. Raises ValueError for figures that cannot teach."""
    return Appraised(
        answer=fit(order.answer, order.seed),
        fields=fit(order.fields, order.seed) if order.fields else None,
        sampled=fit(order.sampled, order.seed) if order.sampled else None,
    )


def fit(judged: Judged, seed: int = 0) -> Fit:
    """Fit a logistic model, its strength chosen by cross-validation, with its probabilities out of fold."""
    right = np.asarray(judged.right, dtype=np.int64)
    values = _matrix(judged)
    if len(np.unique(right)) < 2:
        raise ValueError(
            f"all {len(right)} answers are {'right' if len(right) and right[0] else 'wrong'}: "
            "they say nothing of how the two differ"
        )
    kept = values.std(axis=0) > 1e-9  # what is the same of all says nothing
    names = tuple(name for name, keep in zip(judged.names, kept, strict=True) if keep)
    values = values[:, kept]
    told = {strength: np.zeros(len(right)) for strength in STRENGTHS}
    for repeat in range(REPEATS):
        folds = stratified_folds(right, FOLDS, seed + repeat)
        for fold in range(FOLDS):
            left = folds == fold
            if not left.any() or len(np.unique(right[~left])) < 2:
                raise ValueError("there are too few examples of right or of wrong answers: two of each at least")
            for strength in STRENGTHS:
                weights = _taught(values[~left], right[~left], strength, names)
                told[strength][left] += _logits(weights, values[left]) / REPEATS
    losses = {strength: _loss(logits, right) for strength, logits in told.items()}
    best = min(STRENGTHS, key=lambda strength: (losses[strength], strength))
    probabilities = 1 / (1 + np.exp(-told[best]))
    return Fit(
        weights=_taught(values, right, best, names),
        probabilities=tuple(probabilities.tolist()),
        log_loss=losses[best],
        auroc=auroc(told[best], right.astype(bool)),
    )


def _matrix(judged: Judged) -> Floats:
    numbers = np.frombuffer(judged.figures, dtype="<f8").astype(np.float64)
    rows = len(judged.right)
    if not rows or numbers.size != rows * len(judged.names) or not np.isfinite(numbers).all():
        raise ValueError(f"{numbers.size} figures are not {len(judged.names)} finite ones for each of {rows} examples")
    return numbers.reshape(rows, -1)


def _taught(values: Floats, right: NDArray[np.int64], strength: float, names: Sequence[str]) -> Weights:
    mean, scale = values.mean(axis=0), np.maximum(values.std(axis=0), 1e-6)
    standard = np.clip((values - mean) / scale, -FURTHEST, FURTHEST)
    rows, bias = logistic(standard, right, 2, strength)
    return Weights(
        names=tuple(names),
        means=tuple(mean.tolist()),
        scales=tuple(scale.tolist()),
        weights=tuple((rows[1] - rows[0]).tolist()),
        bias=float(bias[1] - bias[0]),
    )


def _logits(weights: Weights, values: Floats) -> Floats:
    standard = np.clip((values - np.array(weights.means)) / np.array(weights.scales), -FURTHEST, FURTHEST)
    found: Floats = standard @ np.array(weights.weights) + weights.bias
    return found


def _loss(logits: Floats, right: NDArray[np.int64]) -> float:
    return mean_log_loss(np.stack([np.zeros(len(logits)), logits], axis=1), right)


def auroc(scores: Floats, right: NDArray[np.bool_]) -> float:
    """Return P(the score of a right answer is above that of a wrong one), ties half."""
    above = scores[right][:, None] - scores[~right][None, :]
    return float((above > 0).mean() + 0.5 * (above == 0).mean())
