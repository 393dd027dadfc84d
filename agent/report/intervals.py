"""How sure a figure is: 95 % intervals of shares, of differences of shares, of means and of quantiles.

Pure Python: the daemon has no numpy. Sources: Wilson 1927 for a share; Newcombe 1998, method 10,
for a difference of two; order statistics for a quantile; the percentile bootstrap, always the same
draws, for the rest.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from agent.confidence import binomial

T = TypeVar("T")
Z = 1.959963984540054  # of the normal distribution, two-sided 95 %
RESAMPLES = 1000


class Share(msgspec.Struct, frozen=True):
    """How many of how many, 0..1, with its 95 % interval. ``value`` None: of none."""

    count: float
    of: float
    value: float | None
    low: float
    high: float

    def __str__(self) -> str:
        if self.value is None:
            return "unknown (n=0)"
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%}, n={self.of:g})"


class Estimate(msgspec.Struct, frozen=True):
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


def share(count: float, of: float) -> Share:
    """Return a share with Wilson's interval; (0, 1) for n = 0. Counts need not be whole (weighted ones are not)."""
    if of <= 0:
        return Share(count, of, None, 0.0, 1.0)
    p = min(1.0, max(0.0, count / of))
    low, high = wilson(p, of)
    return Share(count, of, p, low, high)


def wilson(p: float, n: float) -> tuple[float, float]:
    """Return Wilson's interval of a share ``p`` seen in ``n`` > 0."""
    z2 = Z * Z
    middle = p + z2 / (2 * n)
    half = Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    scale = 1 + z2 / n
    # At the ends the bound is exact; rounding would leave 1e-17 there.
    low = 0.0 if p == 0.0 else max(0.0, (middle - half) / scale)
    high = 1.0 if p == 1.0 else min(1.0, (middle + half) / scale)
    return low, high


def difference(one: Share, other: Share) -> Estimate | None:
    """Return ``other`` - ``one`` of two independent shares (Newcombe's method 10); None where one is of none."""
    if one.value is None or other.value is None:
        return None
    d = other.value - one.value
    low = d - math.hypot(other.value - other.low, one.high - one.value)
    high = d + math.hypot(other.high - other.value, one.value - one.low)
    return Estimate(d, max(-1.0, low), min(1.0, high))


def mean(values: Sequence[float]) -> Estimate | None:
    """Return a mean with the interval of the normal approximation; None of no values."""
    n = len(values)
    if n == 0:
        return None
    middle = math.fsum(values) / n
    if n == 1:
        return Estimate(middle, -math.inf, math.inf)
    deviation = math.sqrt(math.fsum((one - middle) ** 2 for one in values) / (n - 1))
    half = Z * deviation / math.sqrt(n)
    return Estimate(middle, middle - half, middle + half)


def quantile(ordered: Sequence[float], at: float) -> Estimate | None:
    """Return a quantile of rising values, with the order statistics that hold it with 95 %; None of no values."""
    n = len(ordered)
    if n == 0:
        return None
    low = _rank(n, at, 0.025)
    high = min(n - 1, _rank(n, at, 0.975) + 1)
    return Estimate(ordered[min(n - 1, math.ceil(at * n) - 1 if at * n > 1 else 0)], ordered[low], ordered[high])


def _rank(n: int, at: float, level: float) -> int:
    """Return the largest k with P(Binomial(n, at) < k) <= level."""
    low, high = 0, n
    while low < high:
        middle = (low + high + 1) // 2
        if binomial.cdf(middle - 1, n, at) <= level:
            low = middle
        else:
            high = middle - 1
    return min(low, n - 1)


def bootstrap(items: Sequence[T], figure: Callable[[Sequence[T]], float], resamples: int = RESAMPLES) -> Estimate:
    """Return a figure of at least one item, with the percentile interval of items drawn again and again."""
    chance = random.Random(0)  # noqa: S311 - the same draws each time
    drawn = sorted(figure(chance.choices(items, k=len(items))) for _ in range(resamples))
    last = len(drawn) - 1
    return Estimate(figure(items), drawn[round(0.025 * last)], drawn[round(0.975 * last)])
