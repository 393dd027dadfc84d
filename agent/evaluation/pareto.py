"""Quality per dollar: which options nobody beats in both, and where more money begins to bring little. Pure.

The front holds the options that no other one beats (as good for less, or better for as much). Its
knee is the point farthest above the chord between the cheapest and the best of the front, both
axes scaled to 0..1. It is clear if it stands at least CLEAR above the chord, the front has three
points or more, and in STABLE of the resamples of the cases the knee costs about the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import msgspec

CLEAR = 0.1  # above the chord, of the height of the picture
STABLE = 0.8  # share of resamples
NEAR = 0.15  # of the width of the picture
RESAMPLES = 200
FEWEST_RESAMPLES = 40
MOST_DRAWN = 4_000_000  # figures in all


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """An option with what each case cost, in dollars, and how right it was, 0..1."""

    name: str
    costs: tuple[float, ...]
    rights: tuple[float, ...]
    is_sweep: bool = False  # a hybrid at some threshold, not as it is configured


class Point(msgspec.Struct, frozen=True):
    """An option: mean cost of a case in dollars, and mean quality, 0..1."""

    name: str
    cost: float
    quality: float
    is_sweep: bool = False


class Knee(msgspec.Struct, frozen=True, kw_only=True):
    """Where more money begins to bring little; ``name`` None: there is no clear knee, and ``why``."""

    name: str | None
    why: str
    height: float = 0.0  # above the chord
    stability: float = 0.0  # share of resamples in which it costs about the same


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """All options, those that nobody beats, and the knee."""

    points: tuple[Point, ...]
    front: tuple[Point, ...]
    knee: Knee


def picture(curves: Sequence[Curve]) -> Picture:
    """Return the picture of options over the same cases, at least one."""
    points = [Point(curve.name, _mean(curve.costs), _mean(curve.rights), curve.is_sweep) for curve in curves]
    found = front(points)
    return Picture(points=tuple(points), front=tuple(found), knee=_knee(curves, found))


def front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other one beats, by rising cost; of equal ones the first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda one: (one.cost, -one.quality, one.is_sweep)):
        if not best or point.quality > best[-1].quality + 1e-12:
            best.append(point)
    return best


def farthest(found: Sequence[Point]) -> tuple[Point, float] | None:
    """Return the point of a front farthest above the chord, and how far; None for fewer than three points."""
    if len(found) < 3:
        return None
    first, last = found[0], found[-1]
    width, height = last.cost - first.cost, last.quality - first.quality

    def above(point: Point) -> float:
        return (point.quality - first.quality) / height - (point.cost - first.cost) / width

    top = max(found, key=above)
    return top, above(top)


def _knee(curves: Sequence[Curve], found: Sequence[Point]) -> Knee:
    top = farthest(found)
    if top is None:
        return Knee(
            name=None, why=f"no clear knee: nothing beats {len(found)} of {len(curves)} options, a knee needs three"
        )
    point, height = top
    if height < CLEAR:
        return Knee(
            name=None,
            why=f"no clear knee: the farthest point stands {height:.2f} above the chord, a knee needs {CLEAR:g}",
            height=height,
        )
    stability = _stability(curves, point, found[-1].cost - found[0].cost)
    if stability < STABLE:
        why = (
            f"no clear knee: other draws of the cases put it elsewhere ({stability:.0%} agree, {STABLE:.0%} are needed)"
        )
        return Knee(name=None, why=why, height=height, stability=stability)
    why = f"{height:.2f} above the chord, the same in {stability:.0%} of the draws"
    return Knee(name=point.name, why=why, height=height, stability=stability)


def _stability(curves: Sequence[Curve], knee: Point, width: float) -> float:
    """Return in which share of resamples of the cases the knee costs about as much."""
    count = len(curves[0].costs)
    resamples = max(FEWEST_RESAMPLES, min(RESAMPLES, MOST_DRAWN // (2 * count * len(curves))))
    chance = random.Random(0)  # noqa: S311 - the same draws each time
    near = 0
    for _ in range(resamples):
        drawn = chance.choices(range(count), k=count)
        points = [
            Point(
                curve.name,
                math.fsum(curve.costs[at] for at in drawn) / count,
                math.fsum(curve.rights[at] for at in drawn) / count,
            )
            for curve in curves
        ]
        top = farthest(front(points))
        near += top is not None and abs(top[0].cost - knee.cost) <= NEAR * width
    return near / resamples


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
