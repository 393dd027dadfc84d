"""Whether inputs and scores are still like those of the calibration. Needs no labels. Pure.

Numbers (how long an input is, how sure an answer) are compared by the two-sample test of
Kolmogorov and Smirnov with its asymptotic p-value (Numerical Recipes, 14.3, with Stephens' factor
for small samples). Shares of labels are compared by the population stability index, the
symmetrised divergence ``sum (p - q) ln(p / q)``; where nothing has changed, PSI / (1/n + 1/m) is about
chi-square with one degree less than there are labels (Yurdakul and Naranjo, "Statistical properties
of the population stability index", 2020).

A window of answers is looked at when it is full, and then the next begins. The k-th look of m
figures has the level ``delta 6 / (pi^2 k^2 m)``: summed over all looks that is delta, so an unchanged
stream raises an alarm with probability at most about delta, however long it lasts.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence

import msgspec

WINDOW = 100  # answers
SHIFTED = 0.25  # a stability index from which a shift is usually said to be large
MOST_KEPT = 200  # quantiles of a figure that a calibration keeps
_SMOOTH = 0.5  # answers that a label without any counts as


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """What the inputs and answers of a calibration were like. Numbers are sorted."""

    examples: int
    scores: tuple[float, ...]
    lengths: tuple[float, ...]  # characters
    labels: dict[str, int] = {}


class Shift(msgspec.Struct, frozen=True, kw_only=True):
    """A figure of a window that is not like the calibration's."""

    figure: str  # score, length, label
    statistic: float  # KS distance, or stability index
    p_value: float


def reference(scores: Sequence[float], lengths: Sequence[int], labels: Sequence[str]) -> Reference:
    """Return what later windows are compared with; many numbers are kept as quantiles."""
    counts: dict[str, int] = {}
    for label in labels:
        counts[label] = counts.get(label, 0) + 1
    return Reference(
        examples=len(lengths),
        scores=_quantiles(scores),
        lengths=_quantiles([float(one) for one in lengths]),
        labels=counts,
    )


def _quantiles(numbers: Sequence[float]) -> tuple[float, ...]:
    ordered = sorted(numbers)
    if len(ordered) <= MOST_KEPT:
        return tuple(ordered)
    return tuple(ordered[(2 * place + 1) * len(ordered) // (2 * MOST_KEPT)] for place in range(MOST_KEPT))


def shifts(
    known: Reference, scores: Sequence[float], lengths: Sequence[float], labels: Mapping[str, int], *, level: float
) -> list[Shift]:
    """Return the figures of a window that differ from the calibration's at this level each."""
    found = []
    for figure, then, now in (("score", known.scores, scores), ("length", known.lengths, lengths)):
        distance, p_value = kolmogorov_smirnov(then, now)
        if p_value < level:
            found.append(Shift(figure=figure, statistic=distance, p_value=p_value))
    if known.labels and labels:
        index, p_value = stability(known.labels, labels)
        if p_value < level and index > SHIFTED:
            found.append(Shift(figure="label", statistic=index, p_value=p_value))
    return found


def level_of_look(look: int, figures: int, delta: float) -> float:
    """Return the level of each figure at the ``look``-th look (from 1)."""
    return delta * 6 / (math.pi**2 * look * look * figures)


def kolmogorov_smirnov(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Return the largest distance of the two distribution functions, 0..1, and its p-value."""
    if not one or not other:
        return 0.0, 1.0
    first, second = sorted(one), sorted(other)
    places = {*first, *second}
    distance = max(abs(bisect_right(first, at) / len(first) - bisect_right(second, at) / len(second)) for at in places)
    root = math.sqrt(len(first) * len(second) / (len(first) + len(second)))
    return distance, kolmogorov_tail((root + 0.12 + 0.11 / root) * distance)


def kolmogorov_tail(at: float) -> float:
    """Return P(K > at) of the Kolmogorov distribution: ``2 sum (-1)^(j-1) exp(-2 j^2 at^2)``."""
    if at < 0.2:  # the tail is 1 to twelve digits there, and the series is slow
        return 1.0
    total = math.fsum((-1) ** (j - 1) * math.exp(-2 * j * j * at * at) for j in range(1, 101))
    return min(1.0, max(0.0, 2 * total))


def stability(then: Mapping[str, int], now: Mapping[str, int]) -> tuple[float, float]:
    """Return the population stability index of two counts of labels, and its p-value."""
    names = sorted({*then, *now})
    if len(names) < 2:
        return 0.0, 1.0
    before = sum(then.values()) + _SMOOTH * len(names)
    after = sum(now.values()) + _SMOOTH * len(names)
    index = 0.0
    for name in names:
        p, q = (then.get(name, 0) + _SMOOTH) / before, (now.get(name, 0) + _SMOOTH) / after
        index += (p - q) * math.log(p / q)
    return index, chi_square_tail(index / (1 / before + 1 / after), len(names) - 1)


def chi_square_tail(at: float, freedom: int) -> float:
    """Return P(X > at) of the chi-square distribution with whole degrees of freedom.

    The regularised upper incomplete gamma function by its finite sum: Abramowitz and Stegun 26.4.4 and 26.4.5.
    """
    if at <= 0:
        return 1.0
    half = at / 2
    if freedom % 2:
        total, term = math.erfc(math.sqrt(half)), math.sqrt(2 * at / math.pi) * math.exp(-half)
        for degree in range(3, freedom + 1, 2):
            total += term
            term *= at / degree
        return min(1.0, total)
    total, term = 0.0, math.exp(-half)
    for degree in range(2, freedom + 1, 2):
        total += term
        term *= half / (degree / 2)
    return min(1.0, total)
