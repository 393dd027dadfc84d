"""Go or no-go: whether a variant may be put to work, and what every failure falls back on. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import msgspec

from agent.escalation.prices import written
from agent.evaluation.gates import MONTH_DAYS
from agent.evaluation.variants import RouteName, Scores, Variant
from agent.report.intervals import Share
from agent.settings import TargetSettings
from agent.strictness import stricter
from agent.tasks import TaskSpec
from agent.types import EgressPolicy, OnLowConfidence

LEAST_FREQUENT = 0.9
LEAST_HARD = 0.8
HARD, FREQUENT = "hard", "frequent"


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What the verdict is to look at."""

    p95_ms: float
    per_day: Decimal | None = None  # requests; None: the monthly cost is not looked at
    monthly_budget: Decimal | None = None


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    name: str
    passed: bool
    told: str
    proven: bool = True  # its interval passes too


class Fallback(msgspec.Struct, frozen=True):
    """What happens on a failure; ``to`` empty: nothing, the caller has an error that does not help."""

    failure: str
    to: str


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict on one variant."""

    variant: str
    go: bool
    checks: tuple[Check, ...]
    fallbacks: tuple[Fallback, ...]


def readiness(
    variant: Variant, scores: Scores, frequent: Share | None, wanted: Wanted, fallbacks: Sequence[Fallback]
) -> Readiness:
    """Return the verdict. ``frequent``: accuracy on the frequent cases. What is unknown is no."""
    checks = [
        _accuracy("frequent cases", frequent, LEAST_FREQUENT),
        _accuracy("hard cases", scores.by_tag.get(HARD), LEAST_HARD),
        _latency(scores, wanted),
        *_money(scores, wanted),
        _covered(fallbacks),
    ]
    return Readiness(
        variant=variant.name,
        go=all(check.passed for check in checks),
        checks=tuple(checks),
        fallbacks=tuple(fallbacks),
    )


def _accuracy(name: str, share: Share | None, least: float) -> Check:
    if share is None or share.value is None:
        hint = f'; tag some with "tag": "{HARD}"' if name.startswith(HARD) else ""
        return Check(name, False, f"accuracy is unknown{hint}")
    return Check(name, share.value >= least, f"accuracy {share}, wanted {least:.0%}", share.low >= least)


def _latency(scores: Scores, wanted: Wanted) -> Check:
    if scores.p95_ms is None:
        return Check("latency", False, "unknown: some cases have no answer")
    told = f"p95 {scores.p95_ms.value:.0f} ms ({scores.p95_ms.low:.0f} to {scores.p95_ms.high:.0f})"
    passed = scores.p95_ms.value <= wanted.p95_ms
    return Check("latency", passed, f"{told}, wanted {wanted.p95_ms:g} ms", scores.p95_ms.high <= wanted.p95_ms)


def _money(scores: Scores, wanted: Wanted) -> list[Check]:
    if wanted.per_day is None:
        return []
    if scores.dollars is None or scores.input_dollars is None or scores.output_dollars is None:
        return [Check("monthly cost", False, "unknown: a price or a count of tokens is missing")]
    each = wanted.per_day * MONTH_DAYS
    month = scores.dollars * each
    told = f"{written(month)} ({written(scores.input_dollars * each)} in, {written(scores.output_dollars * each)} out)"
    if wanted.monthly_budget is None:
        return [Check("monthly cost", True, told)]
    return [Check("monthly cost", month <= wanted.monthly_budget, f"{told}, at most {written(wanted.monthly_budget)}")]


def _covered(fallbacks: Sequence[Fallback]) -> Check:
    without = [one.failure for one in fallbacks if not one.to]
    if without:
        return Check("a fallback for each failure", False, f"none for: {', '.join(without)}")
    return Check("a fallback for each failure", True, f"{len(fallbacks)} failures, each has one")


def fallbacks(
    route: RouteName,
    spec: TaskSpec,
    targets: Sequence[TargetSettings],
    default: OnLowConfidence,
    *,
    longest_tokens: int,
    context_tokens: int,
) -> tuple[Fallback, ...]:
    """Return what each failure falls back on, as routing decides it. ``longest_tokens``: of the longest case."""
    may = [target for target in targets if target.egress is not EgressPolicy.NEVER]
    egress = stricter(may[0].egress if may else EgressPolicy.NEVER, spec.egress)
    on_low = spec.on_low_confidence or default
    leaves = bool(may) and egress is not EgressPolicy.NEVER and route is not RouteName.LOCAL
    asks = leaves and on_low is not OnLowConfidence.ABSTAIN
    to = ""
    if asks:
        to = f"target {may[0].name}" + (", after a person's release" if egress is EgressPolicy.APPROVE else "")
    unsure = to or ('the answer "uncertain"' if on_low is OnLowConfidence.ABSTAIN else "the draft, marked uncertain")
    found = [
        Fallback("the model is not sure", unsure),
        Fallback("the engine crashes", to or "the engine starts again; 503, the caller repeats"),
        Fallback("too many requests, or too slow", "429 or 504 with a hint when to repeat"),
        Fallback("the text does not fit the context", to or _fits(longest_tokens, context_tokens)),
    ]
    if route is RouteName.CLOUD:
        found = [one for one in found if one.failure.startswith("too many")]
    if leaves:
        found += [
            Fallback("no network", "the row waits in the queue, on disk"),
            Fallback("the target refuses or expires", "unresolved: the draft stays, marked"),
        ]
    return tuple(found)


def _fits(longest: int, context: int) -> str:
    """Return that nothing comes near the context; empty where something does."""
    return f"not needed: the longest case has {longest} of {context} tokens" if 2 * longest <= context else ""
