"""From judged examples to a calibration: the certificate, the map, the report, and the sentence that says it."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from agent.confidence import binomial, certify, drift, maps
from agent.confidence.calibration import Bin, Calibration, CalibrationKey, Point, Report
from agent.confidence.certify import Certificate, Ranked, Scored, Threshold
from agent.errors import InvalidRequest, NotCertified

NEED_ANSWERS = ("accuracy", "wrong_share")  # targets; a share of escalations is one of scores alone
BINS = 10
CURVE_POINTS = 50
FEWEST_SCORES = 20  # to say anything of a share of the traffic
_FLOOR_DRAWS = 50
VOID = (
    "It is void for other traffic than these examples were drawn from, and is dropped by itself when the task's labels, "
    "schema or prompt, the model, its adapter or quantization, the runtime, the head or the estimator change."
)


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be certified."""

    target: str  # accuracy, escalate, budget, wrong_share
    value: float  # a share, 0..1; of a budget: what may be escalated of all requests
    certificate: Certificate = Certificate.PAC
    confidence: float = 0.9  # 1 - delta


class Judgement(msgspec.Struct, frozen=True):
    """One example as the task answered it."""

    line: int
    score: float | None  # raw; None: no signal
    right: bool | None  # None: nobody said what is right
    length: int = 0  # of the input, characters
    label: str | None = None  # what was chosen, kind labels


def budget_share(amount_per_day: float, price: float, requests_per_day: float) -> float:
    """Return the share of requests that a budget pays for. Raises InvalidRequest for what is no number above 0."""
    if not (price > 0 and requests_per_day > 0):
        raise InvalidRequest("a budget needs --price (of one escalation) and --requests (a day), both above 0")
    return min(1.0, amount_per_day / (price * requests_per_day))


def calibrate(
    judged: Sequence[Judgement],
    wish: Wish,
    *,
    task: str,
    key: CalibrationKey,
    pilot: Sequence[Scored] = (),
    earlier: tuple[float, ...] = (),
    by_head: bool = False,
) -> Calibration:
    """Return the calibration of a task from examples that did not teach it.

    Raises NotCertified where so few examples carry no such promise, with how many would. A
    model that is wrong too often under every threshold is certified to serve nothing.
    """
    ranked = Ranked([Scored(one.score, bool(one.right)) for one in judged])
    threshold = _threshold(ranked, judged, wish, pilot)
    known = all(one.right is not None for one in judged)
    pairs = [(one.score or 0.0, bool(one.right)) for one in judged if known and has_signal(one)]
    pull = maps.PULL_OF_HEAD if by_head else maps.PULL
    fitted = maps.fit(pairs, pull)
    report = _report(judged, pairs, threshold, pull)
    delta = 1 - wish.confidence if _is_pac(wish) else None
    shape = (task, key, fitted, threshold, wish, report)
    return Calibration(
        id=hashlib.sha256(msgspec.msgpack.encode(shape)).hexdigest()[:16],
        task=task,
        key=key,
        map=fitted,
        threshold=None if threshold.score is None else fitted.probability(threshold.score),
        target=wish.target,
        value=wish.value,
        certificate=Certificate.PAC if _is_pac(wish) else Certificate.MEAN,
        delta=None if delta is None else round(delta, 12),
        sentence=_sentence(wish, threshold, report),
        report=report,
        earlier=earlier,
        reference=drift.reference(
            [one.score for one in judged if one.score is not None and has_signal(one)],
            [one.length for one in judged],
            [one.label for one in judged if one.label is not None],
        ),
    )


def has_signal(one: Judgement) -> bool:
    """Whether an answer has a score that is a number."""
    return one.score is not None and math.isfinite(one.score)


def _is_pac(wish: Wish) -> bool:
    return wish.certificate is Certificate.PAC and wish.target != "wrong_share"


def _threshold(ranked: Ranked, judged: Sequence[Judgement], wish: Wish, pilot: Sequence[Scored]) -> Threshold:
    delta = round(1 - wish.confidence, 12)
    if wish.target in {"escalate", "budget"}:
        if len(judged) < FEWEST_SCORES:
            raise NotCertified(f"{len(judged)} examples say nothing of a share of the traffic: bring {FEWEST_SCORES}")
        found = certify.escalated_share(
            [one.score for one in judged], share=wish.value, certificate=wish.certificate, delta=delta
        )
        silent = sum(not has_signal(one) for one in judged)
        if silent > wish.value * len(judged):
            raise NotCertified(
                f"{silent} of {len(judged)} examples have no score and are escalated in any case: "
                f"a share of {wish.value:.1%} cannot be kept"
            )
        # So small a share that no threshold splits it off surely: serve all.
        kept = found if found.score is not None else Threshold(score=0.0, served=len(ranked))
        known = all(one.right is not None for one in judged)
        return msgspec.structs.replace(kept, errors=ranked.errors(kept.served) if known else 0)
    if wish.target == "wrong_share":
        needed = math.ceil(1 / wish.value) - 1
        if len(judged) < needed:
            raise NotCertified(_too_few(len(judged), needed, f"a share of {wish.value:.1%}"))
        return certify.wrong_share(ranked, share=wish.value)
    alpha = round(1 - wish.value, 12)  # 0.1, not 0.09999999999999998
    if wish.certificate is Certificate.MEAN:
        needed = math.ceil(certify.FEWEST_PER_ALPHA / alpha)
        if len(judged) < needed:
            raise NotCertified(_too_few(len(judged), needed, f"an accuracy of {wish.value:.1%}"))
        return certify.accuracy_mean(ranked, alpha=alpha)
    fewest = certify.clean_examples(alpha, delta)
    if len(judged) < fewest:
        raise NotCertified(
            _too_few(len(judged), fewest, f"an accuracy of {wish.value:.1%} at confidence {wish.confidence:.0%}")
            + " (that is without a single error; count on two or three times as many)"
        )
    start = certify.start_share(pilot, len(ranked), alpha=alpha, delta=delta) if pilot else None
    found = certify.accuracy_pac(ranked, alpha=alpha, delta=delta, start_share=start)
    if found.score is not None:
        return found
    estimate = certify.examples_needed(ranked, alpha=alpha, delta=delta)
    if estimate is not None:
        needed = max(estimate, len(judged) + 1)
        raise NotCertified(
            f"{len(judged)} examples do not carry an accuracy of {wish.value:.1%} at confidence {wish.confidence:.0%}; "
            f"about {needed - len(judged)} more might, at a guess from how these were answered (new ones alone are better: "
            "a second try on these promises less), or ask for less"
        )
    return found


def _too_few(there: int, needed: int, what: str) -> str:
    return f"{there} examples cannot carry {what}: {needed - there} more are needed at least, {needed} in all"


def _report(judged: Sequence[Judgement], pairs: Sequence[maps.Pair], threshold: Threshold, pull: float) -> Report:
    told = _out_of_fold(pairs, pull)
    low, high = binomial.interval(threshold.served, len(judged))
    return Report(
        examples=len(judged),
        right=sum(bool(one.right) for one in judged),
        no_signal=sum(not has_signal(one) for one in judged),
        served=threshold.served,
        errors=threshold.errors,
        coverage_low=low,
        coverage_high=high,
        expected_error=expected_calibration_error(told),
        expected_error_floor=_floor([probability for probability, _ in told]),
        reliability=reliability(told),
        curve=risk_coverage(pairs, len(judged)),
    )


def _out_of_fold(pairs: Sequence[maps.Pair], pull: float) -> list[maps.Pair]:
    """Return the probability of each by a map that did not see it, with whether it was right."""
    told = []
    for fold in range(maps.FOLDS):
        fitted = maps.fit([pair for index, pair in enumerate(pairs) if index % maps.FOLDS != fold], pull)
        told += [
            (fitted.probability(score), right)
            for index, (score, right) in enumerate(pairs)
            if index % maps.FOLDS == fold
        ]
    return told


def _bins(told: Sequence[maps.Pair]) -> list[Sequence[maps.Pair]]:
    """Return parts of equal size by rising probability."""
    ordered, count = sorted(told), min(BINS, max(1, len(told) // 5))
    edges = [len(ordered) * part // count for part in range(count + 1)]
    return [ordered[low:high] for low, high in pairwise(edges) if high > low]


def expected_calibration_error(told: Sequence[maps.Pair]) -> float:
    """Return the ECE, 0..1: the mean distance of probability and accuracy over ten bins of equal size."""
    parts = _bins(told)
    return math.fsum(abs(math.fsum(p - right for p, right in part)) for part in parts) / max(1, len(told))


def _floor(probabilities: Sequence[float]) -> float:
    """Return the mean ECE of outcomes drawn from these very probabilities."""
    chance = random.Random(0)  # noqa: S311 - a simulation
    draws = [expected_calibration_error([(p, chance.random() < p) for p in probabilities]) for _ in range(_FLOOR_DRAWS)]
    return math.fsum(draws) / len(draws)


def reliability(told: Sequence[maps.Pair]) -> tuple[Bin, ...]:
    """Return the points of the reliability diagram."""
    found = []
    for part in _bins(told):
        right = sum(one for _, one in part)
        low, high = binomial.interval(right, len(part))
        found.append(
            Bin(
                answers=len(part),
                probability=math.fsum(p for p, _ in part) / len(part),
                accuracy=right / len(part),
                low=low,
                high=high,
            )
        )
    return tuple(found)


def risk_coverage(pairs: Sequence[maps.Pair], count: int) -> tuple[Point, ...]:
    """Return the share that is wrong among the most confident, for a rising share of all ``count`` examples."""
    ranked = Ranked([Scored(score, right) for score, right in pairs])
    places = {ranked.whole(max(1, len(ranked) * part // CURVE_POINTS)) for part in range(1, CURVE_POINTS + 1)}
    return (
        tuple(
            Point(coverage=served / count, risk=ranked.errors(served) / served) for served in sorted(places) if served
        )
        if len(ranked)
        else ()
    )


def _sentence(wish: Wish, threshold: Threshold, report: Report) -> str:
    share = f"{report.coverage:.1%} of the traffic ({report.coverage_low:.1%} to {report.coverage_high:.1%})"
    if threshold.score is None:
        return (
            f"Nothing can be served locally under this promise ({wish.target} {wish.value:g}): "
            "no threshold over these examples holds it. All requests of this task are escalated."
        )
    pac = _is_pac(wish)
    how = (
        f"with probability {wish.confidence:.0%} over the draw of these {report.examples} examples"
        if pac
        else f"on average over draws of {report.examples} examples, not for each"
    )
    match wish.target:
        case "accuracy":
            return f"Of the answers served locally at least {wish.value:.1%} are right, {how}. About {share} is served."
        case "wrong_share":
            return f"At most {wish.value:.1%} of all traffic gets a wrong local answer, {how}. About {share} is served."
        case _:
            why = ", which the budget pays for," if wish.target == "budget" else ""
            return (
                f"At most {wish.value:.1%} of all traffic{why} is escalated, {how}. About {share} is served."
                + _quality_beside(wish, threshold, report)
            )


def _quality_beside(wish: Wish, threshold: Threshold, report: Report) -> str:
    """Say how right what is served is: no answer of these examples has chosen the threshold, so they may judge it."""
    if not _is_pac(wish) or not threshold.served or not report.curve:
        return ""
    least = 1 - binomial.upper_bound(threshold.errors, threshold.served, 1 - wish.confidence)
    return f" Of the answers served at least {least:.1%} are right, with the same probability, each promise by itself."
