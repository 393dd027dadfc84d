"""A report as values: what ``GET /v1/report`` tells and ``outrider report`` prints."""

from __future__ import annotations

from decimal import Decimal

import msgspec

from agent.escalation.prices import written
from agent.report.intervals import Estimate, Share


class Money(msgspec.Struct, frozen=True):
    """Dollars, exactly. ``dollars`` None: a part of it is unknown, and a sum with an unknown part is none."""

    dollars: Decimal | None
    unknown: int = 0  # how many parts are unknown
    known: Decimal = Decimal(0)  # the sum of the others

    def __str__(self) -> str:
        if self.dollars is not None:
            return written(self.dollars)
        return f"unknown ({written(self.known)} known, {self.unknown} without a price)"


def plain(amount: Decimal) -> Decimal:
    """Return the same amount as JSON is to show it: 0.00005 and 1200, not 5E-5 and 1.2E+3."""
    return Decimal(f"{amount.normalize():f}")


class Handled(msgspec.Struct, frozen=True):
    """How many requests one model answered."""

    model: str
    by: str  # "local" or the target's name
    requests: int


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds from acceptance to the answer, of one class of requests."""

    kind: str
    by: str  # "local" or the target's name
    requests: int
    p50: float
    p95: Estimate


class Outcomes(msgspec.Struct, frozen=True, kw_only=True):
    """What became of requests. Each is in one of them."""

    served_locally: int
    resolved: int  # answered by a target
    uncertain: int  # told to be unsure, or given a draft where nothing may leave
    waiting: int  # in the queue, or running
    unresolved: int  # nobody answered: dead, expired
    cancelled: int
    failed: int


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """How good the answers were that nobody escalated, and what that means beside asking a target for everything.

    ``silent_errors`` are served answers that a target, asked for a random sample of them, called
    wrong; weighted by the chance of each to be drawn, n is Kish's effective one. ``change`` is
    that share of errors times the share served locally, below 0: the target's word taken for right.
    """

    samples: int
    silent_errors: Share
    change: Estimate | None
    drafts_right: Share  # escalated drafts that the target confirmed: what a looser threshold would have served
    people: Share  # served answers that people called right; chosen by them, not drawn


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of some requests: all, or those of one arm, task, model or day."""

    name: str
    requests: int
    outcomes: Outcomes
    local_share: Share  # of the requests that were answered
    escalated_share: Share  # of all requests, however it ended
    handled: tuple[Handled, ...]
    sends: int
    cost: Money
    cost_per_request: Estimate | None  # dollars; None: unknown
    cost_per_send: Decimal | None
    all_cloud: Money  # what a target alone would have cost for the same requests
    estimated: int  # requests in all_cloud whose tokens nobody counted
    saving: Decimal | None
    saving_share: float | None
    quality: Quality
    feedback_share: Share  # requests of which a caller or a person said something
    latency: tuple[Latency, ...]


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A group beside the first one, each with its 95 % interval."""

    name: str
    beside: str
    local_share: Estimate | None
    silent_errors: Estimate | None
    people: Estimate | None
    cost_per_request: Estimate | None


class Paid(msgspec.Struct, frozen=True, kw_only=True):
    """What a target was paid under one price."""

    target: str
    model: str | None
    price: str | None
    sends: int
    unknown: int
    input_tokens: int
    output_tokens: int
    dollars: Decimal


class PriceLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the price book, as it is now."""

    target: str
    price: str | None  # with its date; None: unknown


class LabelLine(msgspec.Struct, frozen=True, kw_only=True):
    """How often a label was the answer that was served. Answers that were not sure are in none."""

    task: str
    label: str
    answers: int


class ReportBook(msgspec.Struct, frozen=True, kw_only=True):
    """The whole report of a span of time."""

    since_ms: int
    until_ms: int
    by: str | None
    total: Group
    groups: tuple[Group, ...]
    differences: tuple[Difference, ...]
    paid: Money  # in the span, whatever became of the requests
    paid_to: tuple[Paid, ...]
    prices: tuple[PriceLine, ...]
    labels: tuple[LabelLine, ...]
    notes: tuple[str, ...]
