"""Adding up facts, a page at a time. Money is exact: whole nanodollars and decimal dollars, no floats."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal

from agent.escalation.prices import Price, dollars
from agent.records import FeedbackOrigin, RequestState
from agent.report import intervals
from agent.report.book import Difference, Group, Handled, Latency, Money, Outcomes, Quality, plain
from agent.report.intervals import Estimate, Share
from agent.storage.report_reader import Fact, Judged
from agent.types import Action

LOCAL = "local"
BY_PEOPLE = frozenset({FeedbackOrigin.CALLER, FeedbackOrigin.REVIEW})
FEWEST_SAMPLES = 30  # below it a share of errors says next to nothing
PriceOf = Callable[[str | None], Price | None]  # of a target, as the price book has it


class Tally:
    """The figures of one group of requests."""

    def __init__(self, name: str, price_of: PriceOf) -> None:
        self.name = name
        self._price_of = price_of
        self._outcomes: Counter[str] = Counter()
        self._handled: Counter[tuple[str, str]] = Counter()
        self._latency: dict[tuple[str, str], list[float]] = {}
        self._costs: list[Decimal | None] = []
        self._sends = self._unknown_sends = self._escalated = self._estimated = self._judged = 0
        self._all_cloud = Decimal(0)
        self._all_cloud_unknown = 0
        self._sampled: list[tuple[bool, float]] = []  # right, weight
        self._drafts: Counter[bool] = Counter()
        self._people: Counter[bool] = Counter()

    def add(self, fact: Fact, said: Iterable[Judged] = ()) -> None:
        """Add one request, with what was said of it."""
        self._outcomes[_outcome(fact)] += 1
        self._escalated += fact.purpose == "answer"
        self._sends += fact.sends
        self._unknown_sends += fact.unknown_sends
        self._costs.append(None if fact.unknown_sends else dollars(fact.nanodollars))
        if fact.is_served_locally:
            self._answered(fact, fact.local_model or fact.model, LOCAL)
            self._add_all_cloud(self._would_cost(fact))
            self._estimated += fact.tokens_estimated
        elif fact.is_resolved:
            self._answered(fact, fact.target_model or "", fact.answered_by or "")
            known = fact.answer_nanodollars
            self._add_all_cloud(None if known is None else dollars(known))
        judged = False
        for one in said:
            judged = self._add_word(one) or judged
        self._judged += judged

    def _answered(self, fact: Fact, model: str, by: str) -> None:
        self._handled[model, by] += 1
        if fact.settled_at_ms is not None:
            span = max(0, fact.settled_at_ms - fact.received_at_ms)
            self._latency.setdefault((fact.kind.value, by), []).append(span)

    def _would_cost(self, fact: Fact) -> Decimal | None:
        price = self._price_of(fact.target)
        if price is None or fact.input_tokens is None or fact.output_tokens is None:
            return None
        return price.cost(fact.input_tokens, fact.output_tokens)

    def _add_all_cloud(self, cost: Decimal | None) -> None:
        if cost is None:
            self._all_cloud_unknown += 1
        else:
            self._all_cloud += cost

    def _add_word(self, one: Judged) -> bool:
        """Add what was said; return whether a caller or a person said it."""
        by_people = one.origin in BY_PEOPLE and one.verdict != "skipped"
        if one.right is None:
            return by_people
        if one.origin == FeedbackOrigin.QUALITY_SAMPLE and one.served:
            self._sampled.append((one.right, 1 / (one.propensity or 1.0)))
        elif one.origin == FeedbackOrigin.ESCALATION and not one.served:
            self._drafts[one.right] += 1
        elif by_people and one.served:
            self._people[one.right] += 1
        return by_people

    def group(self) -> Group:
        """Return the figures."""
        count = self._outcomes.total()
        served, resolved = self._outcomes["served_locally"], self._outcomes["resolved"]
        local_share = intervals.share(served, served + resolved)
        cost = self._cost()
        all_cloud = money(self._all_cloud, self._all_cloud_unknown)
        saving = None
        if cost.dollars is not None and all_cloud.dollars is not None:
            saving = plain(all_cloud.dollars - cost.dollars)
        return Group(
            name=self.name,
            requests=count,
            outcomes=Outcomes(**{field: self._outcomes[field] for field in Outcomes.__struct_fields__}),
            local_share=local_share,
            escalated_share=intervals.share(self._escalated, count),
            handled=tuple(Handled(model, by, number) for (model, by), number in self._handled.most_common()),
            sends=self._sends,
            cost=cost,
            cost_per_request=self._cost_per_request(),
            cost_per_send=plain(cost.dollars / self._sends) if cost.dollars is not None and self._sends else None,
            all_cloud=all_cloud,
            estimated=self._estimated,
            saving=saving,
            saving_share=float(saving / all_cloud.dollars) if saving is not None and all_cloud.dollars else None,
            quality=self._quality(local_share),
            feedback_share=intervals.share(self._judged, count),
            latency=tuple(_latency(kind, by, spans) for (kind, by), spans in sorted(self._latency.items())),
        )

    def _cost(self) -> Money:
        known = sum((one for one in self._costs if one is not None), Decimal(0))
        return money(known, self._unknown_sends)

    def _cost_per_request(self) -> Estimate | None:
        if any(one is None for one in self._costs):
            return None
        return intervals.mean([float(one) for one in self._costs if one is not None])

    def _quality(self, local_share: Share) -> Quality:
        weights = math.fsum(weight for _, weight in self._sampled)
        wrong = math.fsum(weight for right, weight in self._sampled if not right)
        squares = math.fsum(weight * weight for _, weight in self._sampled)
        effective = weights * weights / squares if squares else 0.0
        errors = intervals.share(wrong / weights * effective if weights else 0.0, effective)
        change = None
        if errors.value is not None and local_share.value is not None:
            kept = local_share.value
            change = Estimate(-kept * errors.value, -kept * errors.high, -kept * errors.low)
        return Quality(
            samples=len(self._sampled),
            silent_errors=errors,
            change=change,
            drafts_right=intervals.share(self._drafts[True], self._drafts.total()),
            people=intervals.share(self._people[True], self._people.total()),
        )


def money(known: Decimal, unknown: int) -> Money:
    """Return a sum of which ``unknown`` parts are not known."""
    return Money(None if unknown else plain(known), unknown, plain(known))


def _outcome(fact: Fact) -> str:
    match fact.state:
        case RequestState.ANSWERED:
            return "served_locally" if fact.action is Action.ANSWERED else "uncertain"
        case RequestState.RUNNING | RequestState.QUEUED:
            return "waiting"
        case state:
            return state.value


def _latency(kind: str, by: str, spans: Sequence[float]) -> Latency:
    ordered = sorted(spans)
    middle, high = intervals.quantile(ordered, 0.5), intervals.quantile(ordered, 0.95)
    assert middle is not None
    assert high is not None
    return Latency(kind=kind, by=by, requests=len(ordered), p50=middle.value, p95=high)


def differences(groups: Sequence[Group]) -> tuple[Difference, ...]:
    """Return each group beside the first one."""
    if not groups:
        return ()
    first = groups[0]
    return tuple(
        Difference(
            name=other.name,
            beside=first.name,
            local_share=intervals.difference(first.local_share, other.local_share),
            silent_errors=intervals.difference(first.quality.silent_errors, other.quality.silent_errors),
            people=intervals.difference(first.quality.people, other.quality.people),
            cost_per_request=_mean_difference(first.cost_per_request, other.cost_per_request),
        )
        for other in groups[1:]
    )


def _mean_difference(one: Estimate | None, other: Estimate | None) -> Estimate | None:
    if one is None or other is None:
        return None
    half = math.hypot(one.high - one.value, other.high - other.value)
    d = other.value - one.value
    return Estimate(d, d - half, d + half)


def by_request(said: Iterable[Judged]) -> Mapping[str, Sequence[Judged]]:
    """Return what was said, by request."""
    found: dict[str, list[Judged]] = {}
    for one in said:
        found.setdefault(one.request_id, []).append(one)
    return found
