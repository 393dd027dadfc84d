"""From the log-likelihoods of labels to a distribution over them, and how sure it is.

A raw sum says mostly which label the model likes to write, not which one fits: it is never
used. What the model says of inputs without content is divided out: contextual calibration
(Zhao et al., ICML 2021, arXiv 2102.09690), on log-likelihoods per token where the labels'
lengths differ much. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from agent.types import Confidence, Generation, LabelScores

CONTENT_FREE = ("N/A", "[MASK]", "", "nothing")
"""Inputs that say nothing; their scores are the ``content_free`` of LabelScores."""

LENGTHS_DIFFER = 2  # tokens between the shortest and the longest label, above which sums are divided by lengths
ESTIMATOR = "label_margin@1"


def distribution(scores: LabelScores) -> tuple[float, ...]:
    """Return the probability of each label among the labels, in their order; it sums to 1.

    Empty when there is nothing to correct by, or a number is not finite.
    """
    if scores.trained and scores.logprobs and all(map(math.isfinite, scores.logprobs)):
        return tuple(map(math.exp, _log_softmax(scores.logprobs)))
    rows = [scores.logprobs, *scores.content_free]
    if len(rows) < 2 or not scores.logprobs or not all(math.isfinite(figure) for row in rows for figure in row):
        return ()
    if max(scores.token_counts) - min(scores.token_counts) > LENGTHS_DIFFER:
        rows = [tuple(f / n for f, n in zip(row, scores.token_counts, strict=True)) for row in rows]
    told, *free = [_log_softmax(row) for row in rows]
    prior = [_log_mean_exp(column) for column in zip(*free, strict=True)]
    return tuple(map(math.exp, _log_softmax([one - two for one, two in zip(told, prior, strict=True)])))


def best(labels: Sequence[str], probabilities: Sequence[float]) -> int:
    """Return the index of the likeliest label; of equals the first by its text, so that order is nothing."""
    return min(range(len(labels)), key=lambda index: (-probabilities[index], labels[index]))


def judge(generation: Generation) -> Confidence:
    """Return how sure a choice of a label is.

    The score is 1 - p2/p1 of the two likeliest labels: 0 for a tie, 0.5 where the first is
    twice as likely. None when there is no signal. ``mass`` is the unconstrained probability
    of an answer that begins with a label: near 0, the model would have said something else.
    """
    scores = generation.label_scores
    probabilities = sorted(distribution(scores), reverse=True) if scores and not generation.failure else []
    if scores is None or len(probabilities) < 2:
        return Confidence(score=None, estimator=ESTIMATOR)
    first, second = probabilities[:2]
    margin = math.log(first) - math.log(max(second, math.ulp(0.0)))
    score = min(1.0, max(0.0, 1.0 - second / first))
    signals = {
        "margin": margin,  # nats
        "top_probability": first,
        "entropy": -math.fsum(p * math.log(p) for p in probabilities if p > 0),
        "mass": scores.mass,
        "labels": float(len(probabilities)),
        "best_logprob": max(scores.logprobs),
    }
    return Confidence(score=score, raw=score, estimator=ESTIMATOR, signals=signals)


def _log_softmax(figures: Sequence[float]) -> list[float]:
    top = max(figures)
    total = top + math.log(math.fsum(math.exp(figure - top) for figure in figures))
    return [figure - total for figure in figures]


def _log_mean_exp(figures: Sequence[float]) -> float:
    top = max(figures)
    return top + math.log(math.fsum(math.exp(figure - top) for figure in figures) / len(figures))
