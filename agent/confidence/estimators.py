"""From token log-probabilities to a score in 0..1, without a calibration.

All signals come from the unconstrained next-token distribution. A score is None when there
is nothing to judge (no tokens, or a number that is not finite): None is never "sure".

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
    in -1..1 (negative where a drawn token was not the likeliest).
    """
    if not tokens:
        return {}
    logprobs = [token.logprob for token in tokens]
    margins = [math.exp(token.logprob) - math.exp(token.runner_up_logprob) for token in tokens]
    entropies = [token.entropy for token in tokens]
    if not all(map(math.isfinite, [*logprobs, *margins, *entropies])):
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


def estimator(name: str) -> Estimator:
    """Return the estimator of that name. Raises ConfigError with the known names."""
    if name not in SCORES:
        raise ConfigError(f"confidence.estimator = {name!r} is not known; use one of {', '.join(sorted(SCORES))}")
    score_of = SCORES[name]
    label = f"{name}@{VERSION}"

    def judge(generation: Generation) -> Confidence:
        """Judge every answer; the request is as sure as its least sure one, since a caller may pick any."""
        answers = [] if generation.failure else [generation.tokens, *(other.tokens for other in generation.others)]
        found = [signals(tokens) for tokens in answers]
        if not all(found) or not found:
            return Confidence(score=None, estimator=label)
        lowest = min(found, key=score_of)
        score = min(1.0, max(0.0, score_of(lowest)))
        return Confidence(score=score, raw=score, estimator=label, signals=lowest)

    return judge
