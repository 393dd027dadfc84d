"""From a raw score to a probability of being right: monotone maps, fitted and applied in pure Python.

All maps work on the log-odds of the raw score (0..1), never lower a probability when the score
rises, and give values within 0..1. Few examples fit one number (temperature: Guo et al., ICML
2017), more fit two (Platt 1999, with his smoothed targets), many may fit steps (isotonic
regression by pool-adjacent-violators), where cross-validation says that they are better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from itertools import pairwise

import msgspec

CLIP = 1e-12  # scores nearer to 0 or 1 count as this near
FEWEST_FOR_PLATT = 50
FEWEST_FOR_ISOTONIC = 300
FOLDS = 5
_FLATTEST = 1e-3  # least slope: a map must not turn the order of scores around, nor forget it
_STEPS = 60
PULL = 0.5  # of a fitted slope to 1 and of a fitted intercept to 0: the inverse variance that is expected of them
PULL_OF_HEAD = 50.0  # where the score is a probability already, by a temperature fitted on other examples

Pair = tuple[float, bool]  # raw score, right


class MapKind(StrEnum):
    """How a map is made."""

    IDENTITY = "identity"
    TEMPERATURE = "temperature"
    PLATT = "platt"
    ISOTONIC = "isotonic"


class ProbabilityMap(msgspec.Struct, frozen=True, kw_only=True):
    """A map: ``sigmoid(slope * logit(score) + intercept)``, or a line through ``knots`` over the same scale."""

    kind: MapKind = MapKind.IDENTITY
    slope: float = 1.0
    intercept: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()  # log-odds of the score, probability; both rise strictly

    def probability(self, score: float) -> float:
        """Return the probability, 0..1, of a raw score in 0..1."""
        if self.kind is MapKind.IDENTITY:
            return min(1.0, max(0.0, score))
        at = logit(score)
        if not self.knots:
            return sigmoid(self.slope * at + self.intercept)
        return _on_line(self.knots, at)


def logit(probability: float) -> float:
    """Return the log-odds, of what is cut to CLIP..1-CLIP."""
    cut = min(1.0 - CLIP, max(CLIP, probability))
    return math.log(cut) - math.log1p(-cut)


def sigmoid(at: float) -> float:
    """Return 1 / (1 + exp(-at)) without overflow."""
    if at >= 0:
        return 1.0 / (1.0 + math.exp(-at))
    grown = math.exp(at)
    return grown / (1.0 + grown)


def fit(pairs: Sequence[Pair], pull: float = PULL) -> ProbabilityMap:
    """Return the map that suits so many examples. Identity where there is none."""
    if not pairs:
        return ProbabilityMap()
    if len(pairs) < FEWEST_FOR_PLATT:
        return fit_temperature(pairs, pull)
    if len(pairs) < FEWEST_FOR_ISOTONIC:
        return fit_platt(pairs, pull)
    of_platt, of_isotonic = 0.0, 0.0
    for fold in range(FOLDS):
        kept = [pair for index, pair in enumerate(pairs) if index % FOLDS != fold]
        left = [pair for index, pair in enumerate(pairs) if index % FOLDS == fold]
        of_platt += log_loss(fit_platt(kept, pull), left)
        of_isotonic += log_loss(fit_isotonic(kept), left)
    return fit_isotonic(pairs) if of_isotonic < of_platt else fit_platt(pairs, pull)


def fit_temperature(pairs: Sequence[Pair], pull: float = PULL) -> ProbabilityMap:
    """Fit the slope alone."""
    slope, _ = _newton(pairs, pull, with_intercept=False)
    return ProbabilityMap(kind=MapKind.TEMPERATURE, slope=slope)


def fit_platt(pairs: Sequence[Pair], pull: float = PULL) -> ProbabilityMap:
    """Fit slope and intercept."""
    slope, intercept = _newton(pairs, pull, with_intercept=True)
    return ProbabilityMap(kind=MapKind.PLATT, slope=slope, intercept=intercept)


def _newton(pairs: Sequence[Pair], pull: float, *, with_intercept: bool) -> tuple[float, float]:
    """Maximise the likelihood of smoothed targets under a weak pull to the identity."""
    rights = sum(1 for _, right in pairs if right)
    high = (rights + 1) / (rights + 2)
    low = 1 / (len(pairs) - rights + 2)
    points = [(logit(score), high if right else low) for score, right in pairs]
    slope, intercept = 1.0, 0.0

    def loss(a: float, b: float) -> float:
        prior = 0.5 * pull * ((a - 1.0) ** 2 + b * b)
        return prior + math.fsum(_softplus(a * x + b) - t * (a * x + b) for x, t in points)

    best = loss(slope, intercept)
    for _ in range(_STEPS):
        ga = gb = haa = hab = hbb = 0.0
        for x, t in points:
            p = sigmoid(slope * x + intercept)
            rest, weight = p - t, p * (1 - p)
            ga += rest * x
            haa += weight * x * x
            gb += rest
            hab += weight * x
            hbb += weight
        ga, gb = ga + pull * (slope - 1.0), gb + pull * intercept
        haa, hbb = haa + pull, hbb + pull
        if with_intercept:
            det = haa * hbb - hab * hab
            da, db = (hbb * ga - hab * gb) / det, (haa * gb - hab * ga) / det
        else:
            da, db = ga / haa, 0.0
        pace = 1.0
        while pace > 1e-6:
            tried = max(_FLATTEST, slope - pace * da), intercept - pace * db
            value = loss(*tried)
            if value < best:
                break
            pace /= 2
        else:
            break
        done = best - value < 1e-10 * max(1.0, abs(best))
        (slope, intercept), best = tried, value
        if done:
            break
    return slope, intercept


def fit_isotonic(pairs: Sequence[Pair]) -> ProbabilityMap:
    """Pool adjacent violators; the line between the pools rises strictly, and past the ends to 0 and 1.

    Each pool's share is smoothed as Laplace does, so that no finite number of examples means "certain".
    """
    pools: list[list[float]] = []  # right, examples, sum of log-odds
    for score, right in sorted(pairs):
        pools.append([float(right), 1.0, logit(score)])
        while len(pools) > 1 and _share(pools[-2]) >= _share(pools[-1]):
            last = pools.pop()
            pools[-1] = [one + other for one, other in zip(pools[-1], last, strict=True)]
    edge = logit(1.0)
    points = [(-edge, 0.0), *((pool[2] / pool[1], _share(pool)) for pool in pools), (edge, 1.0)]
    knots: list[tuple[float, float]] = []
    for at, share in points:
        if not knots or (at > knots[-1][0] and share > knots[-1][1]):
            knots.append((at, share))
    return ProbabilityMap(kind=MapKind.ISOTONIC, knots=tuple(knots))


def _share(pool: Sequence[float]) -> float:
    return (pool[0] + 0.5) / (pool[1] + 1.0)


def _on_line(knots: Sequence[tuple[float, float]], at: float) -> float:
    if at <= knots[0][0]:
        return knots[0][1]
    for (x0, y0), (x1, y1) in pairwise(knots):
        if at <= x1:
            return min(y1, max(y0, y0 + (y1 - y0) * (at - x0) / (x1 - x0)))
    return knots[-1][1]


def log_loss(fitted: ProbabilityMap, pairs: Sequence[Pair]) -> float:
    """Return the summed negative log-likelihood, nats."""
    total = 0.0
    for score, right in pairs:
        p = min(1 - CLIP, max(CLIP, fitted.probability(score)))
        total -= math.log(p if right else 1 - p)
    return total


def _softplus(at: float) -> float:
    return max(at, 0.0) + math.log1p(math.exp(-abs(at)))
