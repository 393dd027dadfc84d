"""From the log-likelihoods of labels to a distribution over them, and how sure it is.

A raw sum says mostly which label the model likes to write, not which one fits: it is never
used. What the model says of inputs without content is divided out: contextual calibration
(Zhao et al., ICML 2021, arXiv 2102.09690), on log-likelihoods per token where the labels'
lengths differ much. A task that has seen traffic divides out the mean over its inputs instead:
batch calibration (Zhou et al., ICLR 2024, arXiv 2309.17249). A taught head needs neither. Where
an encoder is at hand, how like the input each label is to it counts, too. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from agent.likelihoods import LabelScores
from agent.types import Confidence, Generation

CONTENT_FREE = ("N/A", "[MASK]", "", "nothing")
"""Inputs that say nothing; their scores are the ``content_free`` of LabelScores."""

LENGTHS_DIFFER = 2  # tokens between the shortest and the longest label, above which sums are divided by lengths
DECIDING, RANKING = 20.0, 80.0
"""What likeness counts in nats: where a label is chosen, and where it is told how sure that is. Settled on the training
parts of public sets (`benchmarks/label_likeness.py`)."""

SURENESS = (-0.5, 0.15)
"""Offset and slope, of a logistic curve from the lead of the chosen label (nats, likeness by RANKING) to a score that is
about the share which is right on those sets."""

ESTIMATOR = "label_margin@1"
LIKENESS_ESTIMATOR = "label_likeness@1"
HEAD_ESTIMATOR = "head_probability@2"


def distribution(scores: LabelScores) -> tuple[float, ...]:
    """Return the probability of each label among the labels, in their order; it sums to 1.

    Empty when there is nothing to correct by, or a number is not finite.
    """
    if scores.probabilities:
        return scores.probabilities
    corrected = _with_likeness(scores, DECIDING)
    return tuple(map(math.exp, _log_softmax(corrected))) if corrected else ()


def estimator_of(scores: LabelScores | None) -> str:
    """Return the name and version of what says how sure a choice is, with what it depends on beside the model."""
    if scores is not None and scores.head:
        return HEAD_ESTIMATOR
    if scores is not None and scores.likeness:
        return f"{LIKENESS_ESTIMATOR}/{scores.encoder[:16]}"
    return ESTIMATOR


def score_of(scores: LabelScores) -> float | None:
    """Return how sure the choice of the likeliest label is, 0..1; None where there is no signal."""
    probabilities = distribution(scores)
    plain = raw_score(probabilities, by_head=bool(scores.head))
    if plain is None or not scores.likeness or scores.head:
        return plain
    figures = _with_likeness(scores, RANKING)
    top = max(probabilities)
    lead = min(
        figure - max(figures[:index] + figures[index + 1 :])
        for index, (figure, p) in enumerate(zip(figures, probabilities, strict=True))
        if p == top
    )
    offset, slope = SURENESS
    return 1.0 / (1.0 + math.exp(min(700.0, -offset - slope * lead)))


def _with_likeness(scores: LabelScores, weight: float) -> list[float]:
    """Return the corrected log-likelihoods, plus what likeness counts; empty without a signal."""
    corrected = _corrected(scores)
    if not corrected or not scores.likeness:
        return corrected
    if not all(map(math.isfinite, scores.likeness)):
        return []
    return [one + weight * like for one, like in zip(corrected, scores.likeness, strict=True)]


def _corrected(scores: LabelScores) -> list[float]:
    """Return the log-likelihoods without what the model likes to write anyway."""
    rows = [scores.logprobs, *([scores.earlier] if scores.earlier else scores.content_free)]
    if not scores.logprobs or not all(math.isfinite(figure) for row in rows for figure in row):
        return []
    if scores.trained:
        return _log_softmax(scores.logprobs)
    if scores.earlier:
        return [one - two for one, two in zip(scores.logprobs, scores.earlier, strict=True)]
    if len(rows) < 2:
        return []
    if max(scores.token_counts) - min(scores.token_counts) > LENGTHS_DIFFER:
        rows = [tuple(f / n for f, n in zip(row, scores.token_counts, strict=True)) for row in rows]
    told, *free = [_log_softmax(row) for row in rows]
    prior = [_log_mean_exp(column) for column in zip(*free, strict=True)]
    return [one - two for one, two in zip(told, prior, strict=True)]


def best(labels: Sequence[str], probabilities: Sequence[float]) -> int:
    """Return the index of the likeliest label; of equals the first by its text, so that order is nothing."""
    return min(range(len(labels)), key=lambda index: (-probabilities[index], labels[index]))


def judge(generation: Generation) -> Confidence:
    """Return how sure a choice of a label is.

    The score of a taught head is the probability of its choice: its temperature was fitted out of
    fold. Without one it is the lead of the choice over the next label, most of it by how like the
    input they are to an encoder; without an encoder 1 - p2/p1 of the two likeliest labels: 0 for a
    tie, 0.5 where the first is twice as likely. None when there is no signal. ``mass`` is the
    unconstrained probability of an answer that begins with a label: near 0, the model would have
    said something else. ``likeness_margin`` is below 0 where another label is more like the input.
    ``out_of_scope`` (0..1) rises for inputs that are of none of the labels: 1 - the top probability
    of a head, 1 - mass of a language model.
    """
    scores = generation.label_scores
    probabilities = distribution(scores) if scores and not generation.failure else ()
    estimator = estimator_of(scores)
    score = score_of(scores) if scores and probabilities else None
    if scores is None or score is None:
        return Confidence(score=None, estimator=estimator)
    by_head = bool(scores.head)
    first, second = sorted(probabilities, reverse=True)[:2]
    signals = {
        "margin": math.log(first) - math.log(max(second, math.ulp(0.0))),  # nats
        "top_probability": first,
        "entropy": -math.fsum(p * math.log(p) for p in probabilities if p > 0),
        "labels": float(len(probabilities)),
        "out_of_scope": 1.0 - (first if by_head or scores.mass is None else scores.mass),
    }
    if scores.mass is not None:
        signals["mass"] = scores.mass
    if scores.logprobs:
        signals["best_logprob"] = max(scores.logprobs)
    if scores.likeness and not by_head:
        chosen = max(range(len(probabilities)), key=probabilities.__getitem__)
        signals["likeness"] = scores.likeness[chosen]
        signals["likeness_margin"] = scores.likeness[chosen] - max(
            scores.likeness[:chosen] + scores.likeness[chosen + 1 :]
        )
    return Confidence(score=score, raw=score, estimator=estimator, signals=signals)


def raw_score(probabilities: Sequence[float], *, by_head: bool) -> float | None:
    """Return how sure a distribution is, 0..1; None for fewer than two labels, or a number that is not finite."""
    if len(probabilities) < 2 or not all(map(math.isfinite, probabilities)):
        return None
    first, second = sorted(probabilities, reverse=True)[:2]
    if first <= 0:
        return None
    return min(1.0, max(0.0, first if by_head else 1.0 - second / first))


def _log_softmax(figures: Sequence[float]) -> list[float]:
    top = max(figures)
    total = top + math.log(math.fsum(math.exp(figure - top) for figure in figures))
    return [figure - total for figure in figures]


def _log_mean_exp(figures: Sequence[float]) -> float:
    top = max(figures)
    return top + math.log(math.fsum(math.exp(figure - top) for figure in figures) / len(figures))
