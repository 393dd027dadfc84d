"""From token log-probabilities to a score in 0..1, without a calibration.

All signals come from the unconstrained next-token distribution. A score is None when there
is nothing to judge (no tokens, or a number that is not finite): None is never "sure".

Where a format or a tool constrains the answer, only the tokens that carried a choice count:
what the grammar forced (keys, quotes, braces) says nothing of the model. Their
log-probabilities are still the unconstrained ones, so that a value which the model would
not have said by itself is not sure. An answer cut off before it was complete scores 0.

Sources: sequence log-probability and its quantiles as deferral signals, Gupta et al.,
"Language Model Cascades" (ICLR 2024, arXiv 2404.10136); token entropy and margins as listed
by LM-Polygraph (arXiv 2406.15627).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from agent.errors import ConfigError
from agent.types import Confidence, Generation, Token

Estimator = Callable[[Generation], Confidence]
"""Judges a generation; pure."""

LOWEST_SHARE = 10  # "lowest tenth": the n // 10 least likely tokens, rounded up


def signals(tokens: Sequence[Token]) -> dict[str, float]:
    """Return the raw signals of an answer, empty when there is none.

    Log-probabilities and entropies in nats; margins are differences of probabilities,
    in -1..1 (negative where a drawn token was not the likeliest); min_allowed_mass is the
    least probability that the model gave to all that a format allowed. Forced tokens are
    left out; an answer that was forced as a whole has no signal.
    """
    tokens = [token for token in tokens if not token.forced]
    if not tokens:
        return {}
    logprobs = [token.logprob for token in tokens]
    margins = [math.exp(token.logprob) - math.exp(token.runner_up_logprob) for token in tokens]
    entropies = [token.entropy for token in tokens]
    masses = [token.allowed_mass for token in tokens]
    if not all(map(math.isfinite, [*logprobs, *margins, *entropies, *masses])):
        return {}
    lowest = sorted(logprobs)[: math.ceil(len(logprobs) / LOWEST_SHARE)]
    return {
        "tokens": float(len(tokens)),
        "sum_logprob": math.fsum(logprobs),
        "mean_logprob": math.fsum(logprobs) / len(logprobs),
        "min_logprob": lowest[0],
        "lowest_tenth_logprob": math.fsum(lowest) / len(lowest),
        "first_entropy": entropies[0],
        "mean_entropy": math.fsum(entropies) / len(entropies),
        "max_entropy": max(entropies),
        "min_margin": min(margins),
        "mean_margin": math.fsum(margins) / len(margins),
        "min_allowed_mass": min(masses),
    }


# Name -> the score in 0..1 from the signals. Names appear in configuration and answers.
SCORES: Mapping[str, Callable[[Mapping[str, float]], float]] = {
    "lowest_tenth": lambda s: math.exp(s["lowest_tenth_logprob"]),
    "mean": lambda s: math.exp(s["mean_logprob"]),
    "minimum": lambda s: math.exp(s["min_logprob"]),
    "first_entropy": lambda s: math.exp(-s["first_entropy"]),
    "margin": lambda s: max(0.0, s["min_margin"]),
}
VERSION = 1


def score_of(name: str) -> Callable[[Sequence[Token]], float | None]:
    """Return how the estimator of that name scores some tokens: 0..1, or None without a choice among them.

    Raises ConfigError with the known names.
    """
    scale = _scale(name)

    def score(tokens: Sequence[Token]) -> float | None:
        found = signals(tokens)
        return _within_bounds(scale(found)) if found else None

    return score


def _scale(name: str) -> Callable[[Mapping[str, float]], float]:
    if name not in SCORES:
        raise ConfigError(f"confidence.estimator = {name!r} is not known; use one of {', '.join(sorted(SCORES))}")
    return SCORES[name]


def _within_bounds(score: float) -> float:
    return min(1.0, max(0.0, score))


def estimator(name: str) -> Estimator:
    """Return the estimator of that name. Raises ConfigError with the known names."""
    scale = _scale(name)
    label = f"{name}@{VERSION}"

    def judge(generation: Generation) -> Confidence:
        """Judge every answer; the request is as sure as its least sure one, since a caller may pick any."""
        answers = [] if generation.failure else [generation.tokens, *(other.tokens for other in generation.others)]
        found = [signals(tokens) for tokens in answers]
        if not all(found) or not found:
            return Confidence(score=None, estimator=label)
        lowest = min(found, key=scale)
        raw = _within_bounds(scale(lowest))
        incomplete = generation.incomplete or any(other.incomplete for other in generation.others)
        return Confidence(score=0.0 if incomplete else raw, raw=raw, estimator=label, signals=lowest)

    return judge
