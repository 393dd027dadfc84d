"""From scored, judged examples to a threshold with a promise. Pure.

An answer is served when its score reaches the threshold; what is not served is escalated. Every
rule takes the scores of examples that neither taught the scorer nor chose its parameters, and
looks at them in the order of their scores only.

``pac``: learn-then-test with a fixed sequence (Angelopoulos et al., "Learn then Test", arXiv
2110.01052): the m highest scores are served, m grows from a start that no label of these
examples has chosen, each step tests "the error among what is served is above alpha" with the
exact binomial tail, and the walk ends at the first step that is not rejected at delta. The m
examples above a given score are independent draws of what is served there, so with a risk that
does not fall when more is served P(error among served > alpha) <= delta.

``mean``: (errors + 1) / (served + 1) <= alpha (Linear expectation constraints, arXiv 2512.01556).
It holds on average over calibrations only, and counts a calibration that serves nothing as right.

Shares of all traffic: conformal risk control (Angelopoulos et al., arXiv 2208.02814); shares of
escalated traffic: the k-th smallest of N scores splits off Beta(k, N - k + 1) of the traffic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from itertools import accumulate
from statistics import NormalDist

import msgspec

from agent.confidence import binomial

STEPS = 40  # of the walk through all examples
_POWER = 0.8  # of a certificate with the number of examples that is told to be needed
_AS_SURELY = 0.02  # probabilities of passing a test that count as alike
FEWEST_PER_ALPHA = 3.0  # served examples that ``mean`` wants for 1 / alpha


class Certificate(StrEnum):
    """What kind of promise."""

    PAC = "pac"  # holds for this very calibration, with probability 1 - delta
    MEAN = "mean"  # holds on average over calibrations


class Scored(msgspec.Struct, frozen=True):
    """One example: how sure the answer was (raw score; None: no signal, never served), and whether it was right."""

    score: float | None
    right: bool


class Threshold(msgspec.Struct, frozen=True, kw_only=True):
    """Where to cut: serve scores at or above ``score``. None: nothing can be served under the promise."""

    score: float | None
    served: int = 0  # of the examples
    errors: int = 0  # among the served
    p_value: float | None = None  # of the last test that held (pac)


class Ranked:
    """Examples by falling score, with ties kept together: a threshold cannot part them."""

    def __init__(self, examples: Sequence[Scored]) -> None:
        rated = [(one.score, one.right) for one in examples if one.score is not None and not math.isnan(one.score)]
        rated.sort(key=lambda one: -one[0])
        self.examples = len(examples)
        self.scores = [score for score, _ in rated]
        self._errors = [0, *accumulate(0 if right else 1 for _, right in rated)]

    def __len__(self) -> int:
        """How many have a score."""
        return len(self.scores)

    def errors(self, served: int) -> int:
        """Return the errors among the ``served`` highest scores."""
        return self._errors[served]

    def whole(self, served: int) -> int:
        """Return the least number of served examples, ``served`` or more, that parts no ties."""
        while 0 < served < len(self.scores) and self.scores[served] == self.scores[served - 1]:
            served += 1
        return served

    def cut(self, served: int, p_value: float | None = None) -> Threshold:
        """Return the threshold that serves the ``served`` highest scores."""
        if served == 0:
            return Threshold(score=None)
        return Threshold(score=self.scores[served - 1], served=served, errors=self.errors(served), p_value=p_value)


def accuracy_pac(ranked: Ranked, *, alpha: float, delta: float, start_share: float | None = None) -> Threshold:
    """Return the lowest threshold with P(error among served > alpha) <= delta.

    ``start_share`` (0..1 of the examples) is where the walk begins: chosen on other examples,
    or None for the default, which depends on numbers alone.
    """
    count = len(ranked)
    fewest = clean_examples(alpha, delta)
    if count < fewest:
        return Threshold(score=None)
    if start_share is None:
        start_share = max(min(2 * fewest / count, 0.5), 0.25)
    step = max(1, ranked.examples // STEPS)
    served = ranked.whole(min(count, max(fewest, math.ceil(start_share * count))))
    accepted = Threshold(score=None)
    while True:
        p_value = binomial.cdf(ranked.errors(served), served, alpha)
        if p_value > delta:
            return accepted
        accepted = ranked.cut(served, p_value)
        if served >= count:
            return accepted
        served = ranked.whole(min(count, served + step))


def accuracy_mean(ranked: Ranked, *, alpha: float) -> Threshold:
    """Return the lowest threshold with (errors + 1) / (served + 1) <= alpha and at least 3 / alpha served."""
    fewest = math.ceil(FEWEST_PER_ALPHA / alpha)
    for served in range(len(ranked), fewest - 1, -1):
        if ranked.whole(served) == served and (ranked.errors(served) + 1) / (served + 1) <= alpha:
            return ranked.cut(served)
    return Threshold(score=None)


def wrong_share(ranked: Ranked, *, share: float) -> Threshold:
    """Return the lowest threshold with (wrong and served + 1) / (n + 1) <= share of all traffic (on average)."""
    for served in range(len(ranked), 0, -1):
        if ranked.whole(served) == served and (ranked.errors(served) + 1) / (ranked.examples + 1) <= share:
            return ranked.cut(served)
    return Threshold(score=None)


def escalated_share(
    scores: Sequence[float | None], *, share: float, certificate: Certificate, delta: float
) -> Threshold:
    """Return the highest threshold below which at most ``share`` of the traffic falls. Needs no labels.

    ``pac``: with probability 1 - delta over the examples; ``mean``: on average. A score of None
    is always escalated. Score None in the result: so few examples promise nothing but to serve all.
    """
    count = len(scores)
    rising = sorted(-math.inf if score is None or math.isnan(score) else score for score in scores)
    place = math.floor(share * (count + 1))
    if certificate is Certificate.PAC:
        place = max(
            (k for k in range(1, count + 1) if binomial.beta_cdf(share, k, count - k + 1) >= 1 - delta), default=0
        )
    place = min(place, count)
    if place == 0:
        return Threshold(score=None)
    score = rising[place - 1]
    if score == -math.inf:
        score = next((one for one in rising if one > -math.inf), -math.inf)
    served = sum(1 for one in rising if one >= score)
    return Threshold(score=score, served=served)


def clean_examples(alpha: float, delta: float) -> int:
    """Return how many served examples without one error carry the promise: ln delta / ln(1 - alpha), rounded up."""
    return math.ceil(math.log(delta) / math.log1p(-alpha))


def examples_needed(ranked: Ranked, *, alpha: float, delta: float, most: int = 1_000_000) -> int | None:
    """Return about how many examples a certificate would take in four draws of five, if others are like these.

    The error at each share that could be served is estimated by Laplace's rule, which does not take no errors in
    a few examples for none at all; the share that needs the fewest counts. None: above ``most``, or no share will do.
    """
    best: int | None = None
    for served in sorted({ranked.whole(max(1, len(ranked) * part // STEPS)) for part in range(1, STEPS + 1)}):
        risk = (ranked.errors(served) + 1) / (served + 2) if served else 1.0
        if risk >= alpha:
            continue
        count = max(clean_examples(alpha, delta), _served_for(risk, alpha, delta))
        needed = math.ceil(count * ranked.examples / served)
        if needed <= (best or most):
            best = needed
    return best


def _served_for(risk: float, alpha: float, delta: float) -> int:
    """Return how many served examples pass the test with probability ``_POWER``, by the normal approximation."""
    normal = NormalDist()
    spread = normal.inv_cdf(1 - delta) * math.sqrt(alpha * (1 - alpha))
    spread += normal.inv_cdf(_POWER) * math.sqrt(risk * (1 - risk))
    return math.ceil((spread / (alpha - risk)) ** 2)


def start_share(pilot: Sequence[Scored], count: int, *, alpha: float, delta: float) -> float | None:
    """Return where the walk through ``count`` examples had best begin, as a share, judged on other examples.

    The first place where the pilot says that the test holds about as surely as anywhere: a walk
    that begins too far out ends where it began. None where the pilot says nothing.
    """
    ranked = Ranked(pilot)
    found: list[tuple[float, float]] = []
    for served in sorted({ranked.whole(max(1, len(ranked) * part // STEPS)) for part in range(1, STEPS + 1)}):
        expected = round(served / max(1, ranked.examples) * count)
        if served == 0 or expected < clean_examples(alpha, delta):
            continue
        # Laplace's rule: no errors in a few of a pilot is no proof of none.
        risk = (ranked.errors(served) + 1) / (served + 2)
        found.append((expected / count, binomial.cdf(_most_errors(expected, alpha, delta), expected, risk)))
    surest = max((passes for _, passes in found), default=0.0)
    return next((share for share, passes in found if passes > 0 and passes >= surest - _AS_SURELY), None)


def _most_errors(served: int, alpha: float, delta: float) -> int:
    """Return the most errors with which a test on ``served`` examples still holds; -1 for none."""
    low, high = -1, served
    while low < high:
        middle = (low + high + 1) // 2
        if binomial.cdf(middle, served, alpha) <= delta:
            low = middle
        else:
            high = middle - 1
    return low
