"""What a calibration is worth over many draws of its examples, and what rankings are worth: figures only."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agent.confidence import binomial, certify, maps
from agent.confidence.certify import Certificate, Ranked, Scored

Floats = NDArray[np.float64]
Right = NDArray[np.bool_]
SEED = 7
GAPS = (0.5, 0.8, 0.95)  # shares of a gap that are to be closed


class Answers(NamedTuple):
    """The answers of a task to its test examples: how sure each was, and whether it was right."""

    scores: Floats
    right: Right


class Worth(NamedTuple):
    """What a way to find a threshold did over all draws."""

    coverage: float  # mean share of the other examples that is served
    broken: float  # share of draws in which the promise does not hold
    risk: float  # mean share that is wrong among the served
    kept_up: float  # share of draws with at least 70 % served and at most 2 points below the cloud


Rule = Callable[[Sequence[Scored]], float | None]


def worth(
    answers: Answers,
    rule: Rule,
    *,
    examples: int,
    draws: int,
    alpha: float = 1.0,
    escalated: float = 1.0,
    cloud: float = 0.95,
) -> Worth:
    """Draw ``examples`` for the rule, look at all others, ``draws`` times. ``cloud``: a simulated target's accuracy.

    Broken is a draw with more than ``alpha`` wrong among the served, or more than ``escalated`` not served.
    """
    chance = np.random.default_rng(SEED)
    found = []
    for _ in range(draws):
        order = chance.permutation(len(answers.scores))
        known, others = order[:examples], order[examples:]
        threshold = rule([Scored(float(answers.scores[i]), bool(answers.right[i])) for i in known])
        served = answers.scores[others] >= (math.inf if threshold is None else threshold)
        wrong = float(np.mean(~answers.right[others][served])) if served.any() else 0.0
        share = float(np.mean(served))
        system = share * (1 - wrong) + (1 - share) * cloud
        broken = wrong > alpha or 1 - share > escalated
        found.append((share, broken, wrong, share >= 0.7 and system >= cloud - 0.02))
    columns = list(zip(*found, strict=True))
    return Worth(*(float(np.mean(column)) for column in columns))


def told_too_much(answers: Answers, rule: Rule, *, examples: int, draws: int, delta: float) -> float:
    """Return the share of draws in which what is told of the served answers, "at least so many are right", is not so."""
    chance = np.random.default_rng(SEED)
    wrong = 0
    for _ in range(draws):
        order = chance.permutation(len(answers.scores))
        known, others = order[:examples], order[examples:]
        threshold = rule([Scored(float(answers.scores[i]), bool(answers.right[i])) for i in known])
        at_least = math.inf if threshold is None else threshold
        of_known = answers.right[known][answers.scores[known] >= at_least]
        of_others = answers.right[others][answers.scores[others] >= at_least]
        most = binomial.upper_bound(int((~of_known).sum()), len(of_known), delta) if len(of_known) else 1.0
        wrong += bool(len(of_others)) and float(np.mean(~of_others)) > most
    return wrong / draws


def pac(alpha: float, delta: float, pilot: Sequence[Scored] = ()) -> Rule:
    """Return what `outrider calibrate --accuracy` does."""

    @functools.cache  # the pilot is the same in every draw
    def start_of(count: int) -> float | None:
        return certify.start_share(pilot, count, alpha=alpha, delta=delta) if pilot else None

    def rule(known: Sequence[Scored]) -> float | None:
        ranked = Ranked(known)
        start = start_of(len(ranked))
        return certify.accuracy_pac(ranked, alpha=alpha, delta=delta, start_share=start).score

    return rule


def escalate(share: float, delta: float) -> Rule:
    """Return what `--escalate` does: it looks at no answers, only at how sure they are."""

    def rule(known: Sequence[Scored]) -> float | None:
        scores = [one.score for one in known]
        return certify.escalated_share(scores, share=share, certificate=Certificate.PAC, delta=delta).score

    return rule


def mean(alpha: float) -> Rule:
    """Return what `--on-average` does."""
    return lambda known: certify.accuracy_mean(Ranked(known), alpha=alpha).score


def naive(alpha: float) -> Rule:
    """Return the usual way: the lowest threshold under which the examples are wrong no more often than alpha."""

    def rule(known: Sequence[Scored]) -> float | None:
        ranked = Ranked(known)
        kept = [n for n in range(1, len(ranked) + 1) if ranked.whole(n) == n and ranked.errors(n) <= alpha * n]
        return ranked.scores[kept[-1] - 1] if kept else None

    return rule


def oracle_coverage(answers: Answers, alpha: float) -> float:
    """Return the largest share of the most confident that is wrong no more often than alpha."""
    risks = _risks(answers)
    kept = np.flatnonzero(risks <= alpha)
    return float(kept[-1] + 1) / len(risks) if len(kept) else 0.0


def _risks(answers: Answers) -> Floats:
    order = np.argsort(-answers.scores, kind="stable")
    risks: Floats = np.cumsum(~answers.right[order]) / np.arange(1, len(order) + 1)
    return risks


def aurc(answers: Answers) -> tuple[float, float]:
    """Return the mean risk over all coverages, and how far it is above that of a perfect ranking."""
    risks = _risks(answers)
    perfect = _risks(Answers(answers.right.astype(float), answers.right))
    return float(risks.mean()), float(risks.mean() - perfect.mean())


def auroc(answers: Answers) -> float:
    """Return P(a right answer's score is above a wrong one's), ties half."""
    _, inverse, counts = np.unique(answers.scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    rights = int(answers.right.sum())
    wrongs = len(answers.right) - rights
    if not rights or not wrongs:
        return math.nan
    return float((ranks[answers.right].sum() - rights * (rights + 1) / 2) / (rights * wrongs))


def bootstrap(answers: Answers, figure: Callable[[Answers], float], draws: int = 200) -> tuple[float, float]:
    """Return the 95 % interval of a figure."""
    chance = np.random.default_rng(SEED)
    found = []
    for _ in range(draws):
        chosen = chance.integers(0, len(answers.scores), len(answers.scores))
        found.append(figure(Answers(answers.scores[chosen], answers.right[chosen])))
    low, high = np.nanquantile(found, [0.025, 0.975])
    return float(low), float(high)


def calibration_error(answers: Answers, examples: int, pull: float, draws: int = 20) -> tuple[float, float]:
    """Return the mean ECE of a map fitted on so many examples, on all others, and that of outcomes drawn from it."""
    chance = np.random.default_rng(SEED)
    found, floor = [], []
    for _ in range(draws):
        order = chance.permutation(len(answers.scores))
        known, others = order[:examples], order[examples:]
        fitted = maps.fit([(float(answers.scores[i]), bool(answers.right[i])) for i in known], pull)
        told = np.array([fitted.probability(float(score)) for score in answers.scores[others]])
        found.append(_ece(told, answers.right[others]))
        floor.append(_ece(told, chance.random(len(told)) < told))
    return float(np.mean(found)), float(np.mean(floor))


def _ece(told: Floats, right: Right) -> float:
    parts = np.array_split(np.argsort(told), 10)
    return float(sum(abs(np.sum(told[part] - right[part])) for part in parts) / len(told))


def attainable(answers: Answers, cloud: float = 1.0) -> tuple[float, float, dict[float, float]]:
    """Return APGR, its maximum, and the least escalated share for 50, 80 and 95 % of the gap.

    ``cloud``: how often a simulated target is right, whatever is asked. All are NaN where it is not above the local
    accuracy: there is no gap.
    """
    gap = float(cloud - answers.right.mean()) * len(answers.right)
    if gap <= 0:
        return math.nan, math.nan, dict.fromkeys(GAPS, math.nan)

    def closed(order: Sequence[int] | NDArray[np.int64]) -> Floats:
        return np.concatenate([[0.0], np.cumsum(cloud - answers.right[order]) / gap])

    found = closed(np.argsort(answers.scores, kind="stable"))  # least sure first
    best = closed(np.argsort(answers.right, kind="stable"))
    share = {level: float(np.argmax(found >= level - 1e-9)) / len(answers.right) for level in GAPS}
    step = 1 / len(answers.right)
    return float(np.trapezoid(found, dx=step)), float(np.trapezoid(best, dx=step)), share


def allowed_broken(delta: float, draws: int) -> float:
    """Return the share of broken draws that chance explains: delta and two standard errors."""
    return delta + 2 * math.sqrt(delta * (1 - delta) / draws)


def shuffled(count: int, seed: int = SEED) -> list[int]:
    """Return the numbers below ``count`` in an order that is the same in every run."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order
