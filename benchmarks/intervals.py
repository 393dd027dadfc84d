"""Medians, percentiles and bootstrap intervals of rounds. Pure, standard library."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

RESAMPLES = 2000
SEED = 20  # the same rounds give the same interval

Statistic = Callable[[Sequence[float]], float]


class Ratio(NamedTuple):
    """A ratio of two statistics and its 95 % interval."""

    value: float
    low: float
    high: float


def percentile(values: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile; ``share`` is 0..1. Raises ValueError without values."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def p95(values: Sequence[float]) -> float:
    """Return the value that 95 % do not exceed."""
    return percentile(values, 0.95)


def median(values: Sequence[float]) -> float:
    """Return the median. Raises ValueError without values."""
    if not values:
        raise ValueError("no values")
    return statistics.median(values)


def ratio(over: Sequence[float], under: Sequence[float], statistic: Statistic = median) -> Ratio:
    """Return statistic(over) / statistic(under) with its percentile bootstrap interval.

    Rounds are resampled as pairs where both sides have the same number of them: what disturbed
    the machine in a round disturbed both. Raises ValueError without values.
    """
    value = _divided(statistic(over), statistic(under))
    source = random.Random(SEED)
    paired = len(over) == len(under)
    found = []
    for _ in range(RESAMPLES):
        picks = [source.randrange(len(over)) for _ in over]
        others = picks if paired else [source.randrange(len(under)) for _ in under]
        found.append(_divided(statistic([over[i] for i in picks]), statistic([under[i] for i in others])))
    return Ratio(value, percentile(found, 0.025), percentile(found, 0.975))


def interval(values: Sequence[float], statistic: Statistic = median) -> Ratio:
    """Return a statistic of one side with its percentile bootstrap interval."""
    source = random.Random(SEED)
    found = [statistic([source.choice(values) for _ in values]) for _ in range(RESAMPLES)]
    return Ratio(statistic(values), percentile(found, 0.025), percentile(found, 0.975))


def _divided(over: float, under: float) -> float:
    return over / under if under else math.inf
