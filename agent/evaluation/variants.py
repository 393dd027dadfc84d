"""Ways of answering a set of cases: a model and a route, and how good, fast and dear each of them is. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from enum import StrEnum
from typing import Any

import msgspec

from agent.evaluation.cases import Case
from agent.evaluation.marks import Mark, Validator, macro_f1, mark
from agent.report import intervals
from agent.report.intervals import Estimate, Share
from agent.tasks import TaskKind, TaskSpec

MOST_DRAWN = 2_000_000  # cases drawn in all for one interval
FEWEST_RESAMPLES = 40


class RouteName(StrEnum):
    """Who answers."""

    LOCAL = "local"  # the local model, whatever its confidence
    HYBRID = "hybrid"  # the local model where it is sure enough, else the target
    CLOUD = "cloud"  # the target


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What one case was answered with. None is unknown."""

    answer: str | None  # None: there is none
    calls: tuple[Any, ...] = ()
    local: bool = True  # the local model's
    served: bool = True  # sure enough to be given without a target
    probability: float | None = None
    latency_ms: float | None = None
    input_dollars: Decimal | None = None
    output_dollars: Decimal | None = None

    @property
    def dollars(self) -> Decimal | None:
        """What it cost."""
        if self.input_dollars is None or self.output_dollars is None:
            return None
        return self.input_dollars + self.output_dollars


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """A model and a route, with a reply to each case in their order."""

    model: str  # "" of a cloud that nobody named
    route: RouteName
    replies: tuple[Reply, ...]
    threshold: float | None = None  # of a hybrid, where it is not the task's own

    @property
    def name(self) -> str:
        """As it is printed."""
        return f"{self.model or 'cloud'} {self.route}"


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """How good, fast and dear a variant is. A share has its interval and n; None: not for this kind of task, or unknown."""

    cases: int
    unanswered: int  # escalated, and no target was asked; or asked in vain
    accuracy: Share | None  # None: unknown, as some cases are unanswered or nobody said what is right
    accuracy_bounds: tuple[float, float]  # if all unanswered ones were wrong, and if all were right
    served: Share  # by the local model
    served_accuracy: Share  # of those
    agreement: Share | None  # with the cloud's answers
    exact: Share | None
    f1: Estimate | None
    numeric: Share | None
    schema_valid: Share | None
    p50_ms: float | None
    p95_ms: Estimate | None
    dollars: Decimal | None  # a request
    input_dollars: Decimal | None
    output_dollars: Decimal | None
    joules: float | None = None  # a request, of the whole machine
    by_tag: dict[str, Share] = {}


def hybrid(local: Variant, cloud: Variant | None, threshold: float | None = None) -> Variant:
    """Return what a hybrid gives: the local reply where it is served, else the cloud's behind it.

    ``threshold`` None: as the task's calibration and the configuration serve.
    """
    later = cloud.replies if cloud else (Reply(answer=None, local=False),) * len(local.replies)
    replies = []
    for first, second in zip(local.replies, later, strict=True):
        is_served = first.served if threshold is None else (first.probability or 0.0) >= threshold
        replies.append(first if is_served and first.answer is not None else _behind(first, second))
    return Variant(model=local.model, route=RouteName.HYBRID, replies=tuple(replies), threshold=threshold)


def _behind(first: Reply, second: Reply) -> Reply:
    """Return the second reply with the time and money that the first one had taken already."""
    return msgspec.structs.replace(
        second,
        local=False,
        served=False,
        probability=first.probability,
        latency_ms=_sum(first.latency_ms, second.latency_ms),
        input_dollars=_sum(first.input_dollars, second.input_dollars),
        output_dollars=_sum(first.output_dollars, second.output_dollars),
    )


def _sum(one: Any, other: Any) -> Any:
    return None if one is None or other is None else one + other


class Scoring:
    """Gives the scores of variants over one set of cases."""

    def __init__(
        self, spec: TaskSpec, cases: Sequence[Case], *, labelled: bool, is_valid: Validator | None = None
    ) -> None:
        self._spec = spec
        self._cases = cases
        self._labelled = labelled
        self._is_valid = is_valid

    def marks(self, variant: Variant, wanted: Callable[[Case], Sequence[str]] | None = None) -> list[Mark | None]:
        """Return the mark of each reply; None where there is no reply, or nothing to compare with."""
        right = wanted or (lambda case: case.answers)
        return [
            mark(self._spec, reply.answer, reply.calls, right(case), self._is_valid)
            if reply.answer is not None and right(case)
            else None
            for case, reply in zip(self._cases, variant.replies, strict=True)
        ]

    def scores(self, variant: Variant, cloud: Variant | None = None, joules: float | None = None) -> Scores:
        """Return the scores; ``cloud`` gives the answers that agreement is measured against."""
        replies = variant.replies
        marks = self.marks(variant)
        known = [one for one in marks if one is not None]
        unanswered = sum(reply.answer is None for reply in replies)
        right = sum(one.right for one in known)
        served = [one for one, reply in zip(marks, replies, strict=True) if reply.local and reply.served]
        served_known = [one for one in served if one is not None]
        whole = self._labelled and not unanswered
        latencies = sorted(reply.latency_ms for reply in replies if reply.latency_ms is not None)
        count = len(replies)
        return Scores(
            cases=count,
            unanswered=unanswered,
            accuracy=intervals.share(right, count) if whole else None,
            accuracy_bounds=(right / count, (right + unanswered) / count) if self._labelled else (0.0, 1.0),
            served=intervals.share(len(served), count),
            served_accuracy=intervals.share(sum(one.right for one in served_known), len(served_known)),
            agreement=self._agreement(variant, cloud),
            exact=intervals.share(sum(one.exact for one in known), count) if whole else None,
            f1=self._f1(variant, known) if whole else None,
            numeric=_of([one.numeric for one in known]) if whole else None,
            schema_valid=_of([self._valid(reply) for reply in replies]),
            p50_ms=_value(intervals.quantile(latencies, 0.5)) if len(latencies) == count else None,
            p95_ms=intervals.quantile(latencies, 0.95) if len(latencies) == count else None,
            dollars=_mean_dollars([reply.dollars for reply in replies]),
            input_dollars=_mean_dollars([reply.input_dollars for reply in replies]),
            output_dollars=_mean_dollars([reply.output_dollars for reply in replies]),
            joules=joules,
            by_tag=self._by_tag(marks) if whole else {},
        )

    def _valid(self, reply: Reply) -> bool | None:
        if self._is_valid is None or reply.answer is None:
            return None
        return self._is_valid(reply.answer)

    def _by_tag(self, marks: Sequence[Mark | None]) -> dict[str, Share]:
        found: dict[str, list[bool]] = {}
        for case, one in zip(self._cases, marks, strict=True):
            for tag in case.tags:
                found.setdefault(tag, []).append(one is not None and one.right)
        return {tag: intervals.share(sum(marked), len(marked)) for tag, marked in found.items()}

    def _agreement(self, variant: Variant, cloud: Variant | None) -> Share | None:
        if cloud is None or cloud is variant:
            return None
        said = {id(case): reply.answer for case, reply in zip(self._cases, cloud.replies, strict=True)}

        def by_cloud(case: Case) -> Sequence[str]:
            answer = said[id(case)]
            return () if answer is None else (answer,)

        marks = [one for one in self.marks(variant, by_cloud) if one is not None]
        return intervals.share(sum(one.right for one in marks), len(marks))

    def _f1(self, variant: Variant, marks: Sequence[Mark]) -> Estimate:
        resamples = max(FEWEST_RESAMPLES, min(intervals.RESAMPLES, MOST_DRAWN // max(1, len(marks))))
        if self._spec.kind is TaskKind.LABELS:
            pairs = [
                (reply.answer or "", case.answers[0]) for case, reply in zip(self._cases, variant.replies, strict=True)
            ]
            return intervals.bootstrap(pairs, macro_f1, resamples)
        return intervals.bootstrap([one.f1 for one in marks], lambda drawn: math.fsum(drawn) / len(drawn), resamples)


def _of(found: Sequence[bool | None]) -> Share | None:
    known = [one for one in found if one is not None]
    return intervals.share(sum(known), len(known)) if known else None


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value


def _mean_dollars(found: Sequence[Decimal | None]) -> Decimal | None:
    known = [one for one in found if one is not None]
    return sum(known, Decimal(0)) / len(known) if len(known) == len(found) else None
