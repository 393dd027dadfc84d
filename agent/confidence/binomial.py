"""The binomial distribution, exactly enough to promise something by it (absolute error below 1e-9 up to n = 20,000).

Pure Python: the daemon and the command line have no scipy. A test compares with scipy.
"""

from __future__ import annotations

import math

_SMALLEST = 1e-17  # a term this small beside the sum changes no digit of it

# Of exp() in a double. Beyond it p is below 1e-307 and the mean is 0: nothing is multiplied by the odds.
_LARGEST_EXPONENT = 709.0


def cdf(k: int, n: int, p: float) -> float:
    """Return P(X <= k) for X ~ Binomial(n, p); 0 <= p <= 1, n >= 0."""
    if k < 0:
        return 0.0
    if k >= n:
        return 1.0
    if p <= 0.0:
        return 1.0
    if p >= 1.0:
        return 0.0
    # The tail that is away from the mean is the one whose terms fall fast.
    if k < n * p:
        return min(1.0, _tail(k, n, math.log(p), math.log1p(-p)))
    return max(0.0, 1.0 - _tail(n - k - 1, n, math.log1p(-p), math.log(p)))


def _tail(k: int, n: int, log_p: float, log_q: float) -> float:
    """Return P(X <= k) where k is below the mean: the likeliest term, and those that fall away from it."""
    log_term = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    term = math.exp(log_term + k * log_p + (n - k) * log_q)
    total, odds = term, math.exp(min(log_q - log_p, _LARGEST_EXPONENT))
    for i in range(k, 0, -1):
        term *= i / (n - i + 1) * odds
        total += term
        if term < total * _SMALLEST:
            break
    return total


def upper_bound(k: int, n: int, delta: float) -> float:
    """Return the Clopper-Pearson bound: with k of n seen, p is above it with probability at most delta."""
    if k >= n:
        return 1.0
    low, high = 0.0, 1.0
    while True:
        middle = (low + high) / 2
        if middle in {low, high}:
            return high
        if cdf(k, n, middle) > delta:
            low = middle
        else:
            high = middle


def lower_bound(k: int, n: int, delta: float) -> float:
    """Return the bound below which p is with probability at most delta."""
    return 0.0 if k <= 0 else 1.0 - upper_bound(n - k, n, delta)


def interval(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return the exact two-sided interval of a share of k in n; (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    outside = (1.0 - level) / 2
    return lower_bound(k, n, outside), upper_bound(k, n, outside)


def beta_cdf(x: float, a: int, b: int) -> float:
    """Return P(B <= x) for B ~ Beta(a, b) with whole a, b >= 1: the a-th smallest of a + b - 1 uniform numbers."""
    return 1.0 - cdf(a - 1, a + b - 1, x)
