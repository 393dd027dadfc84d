"""What a number of requests would cost, before anything is built. Exact: decimal dollars.

A month has 30 days, a year 365. What has no price is unknown (None), never 0; a figure made of
it is unknown too.
"""

from __future__ import annotations

from decimal import Decimal

import msgspec

from agent.errors import InvalidRequest
from agent.escalation.prices import Price
from agent.report.book import plain

MONTH_DAYS = 30
YEAR_DAYS = 365
HOURS = 24
HYBRID, CLOUD, LOCAL = "hybrid", "cloud only", "local only"


class LocalCosts(msgspec.Struct, frozen=True, kw_only=True):
    """What answering locally costs. All in dollars; 0 where there is nothing to pay."""

    price: Price | None = None  # of tokens, where somebody hosts the small model
    per_hour: Decimal = Decimal(0)  # of a rented machine, that runs all day
    hardware: Decimal = Decimal(0)  # bought once
    lifetime_months: Decimal = Decimal(36)
    watts: Decimal = Decimal(0)  # drawn all day
    per_kwh: Decimal = Decimal(0)

    @property
    def running_per_day(self) -> Decimal:
        """What a day costs, however many requests there are, without the purchase."""
        return self.per_hour * HOURS + self.watts * HOURS / 1000 * self.per_kwh

    @property
    def fixed_per_day(self) -> Decimal:
        """The same with the purchase spread over its life."""
        return self.running_per_day + self.hardware / (self.lifetime_months * MONTH_DAYS)

    def per_request(self, tokens_in: int, tokens_out: int) -> Decimal:
        """What one more request costs."""
        return Decimal(0) if self.price is None else self.price.cost(tokens_in, tokens_out)


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """The traffic that a plan is for."""

    per_day: Decimal
    tokens_in: int
    tokens_out: int
    local_share: Decimal | None = None  # of a hybrid, 0..1; None: it is not looked at
    router: Decimal = Decimal(0)  # what sorting costs a request of a hybrid, dollars


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One way of answering all requests."""

    name: str
    per_request: Decimal | None  # the fixed costs' share in it
    per_day: Decimal | None
    per_month: Decimal | None
    per_year: Decimal | None
    saving: Decimal | None = None  # a year, beside cloud only
    saving_share: float | None = None
    break_even_per_day: Decimal | None = None  # requests a day from which it is cheaper than cloud only
    never: bool = False  # it is cheaper at no volume
    payback_months: Decimal | None = None  # until the hardware has paid for itself


class Variation(msgspec.Struct, frozen=True):
    """The best option where one assumption is another."""

    what: str
    cheapest: str | None
    saving_share: float | None  # of the best option, beside cloud only


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a workload would cost, each way."""

    workload: Workload
    price: Price | None
    options: tuple[Option, ...]
    cheapest: str | None  # None: a price is unknown
    variations: tuple[Variation, ...] = ()
    local_is_free: bool = False  # nothing was said of what the local machine costs


def make_plan(workload: Workload, price: Price | None, local: LocalCosts) -> Plan:
    """Return the plan, with what changes when an assumption does. Raises InvalidRequest for figures that are none."""
    _check(workload, local)
    plan = _plan(workload, price, local)
    variations = []
    for what, changed in _variations(workload):
        other = _plan(changed, price, local)
        best = next((one for one in other.options if one.name == other.cheapest), None)
        variations.append(Variation(what, other.cheapest, best.saving_share if best else None))
    free = local == LocalCosts(lifetime_months=local.lifetime_months)
    return msgspec.structs.replace(plan, variations=tuple(variations), local_is_free=free)


def _check(workload: Workload, local: LocalCosts) -> None:
    share = workload.local_share
    faults = {
        "--volume": workload.per_day <= 0,
        "--tokens-in": workload.tokens_in < 0,
        "--tokens-out": workload.tokens_out < 0 or workload.tokens_in + workload.tokens_out == 0,
        "--local-share": share is not None and not 0 <= share <= 1,
        "--lifetime-months": local.lifetime_months <= 0,
    }
    if wrong := [name for name, is_wrong in faults.items() if is_wrong]:
        raise InvalidRequest(f"{wrong[0]} is out of range: a plan needs requests, tokens and shares of 0 to 1")


def _plan(workload: Workload, price: Price | None, local: LocalCosts) -> Plan:
    cloud_each = None if price is None else price.cost(workload.tokens_in, workload.tokens_out)
    local_each = local.per_request(workload.tokens_in, workload.tokens_out)
    cloud = _option(CLOUD, workload, cloud_each, Decimal(0))
    options = [cloud, _beside(cloud, workload, local, _option(LOCAL, workload, local_each, local.fixed_per_day))]
    if (share := workload.local_share) is not None:
        each = None
        if cloud_each is not None:
            each = workload.router + share * local_each + (1 - share) * cloud_each
        options.append(_beside(cloud, workload, local, _option(HYBRID, workload, each, local.fixed_per_day)))
    known = [(one.per_request, one.name) for one in options if one.per_request is not None]
    cheapest = min(known)[1] if len(known) == len(options) else None
    return Plan(workload=workload, price=price, options=tuple(options), cheapest=cheapest)


def _option(name: str, workload: Workload, each: Decimal | None, fixed_per_day: Decimal) -> Option:
    if each is None:
        return Option(name=name, per_request=None, per_day=None, per_month=None, per_year=None)
    day = each * workload.per_day + fixed_per_day
    return Option(
        name=name,
        per_request=plain(day / workload.per_day),
        per_day=plain(day),
        per_month=plain(day * MONTH_DAYS),
        per_year=plain(day * YEAR_DAYS),
    )


def _beside(cloud: Option, workload: Workload, local: LocalCosts, option: Option) -> Option:
    """Add what an option saves beside the cloud, and from what volume on."""
    if cloud.per_day is None or option.per_day is None or cloud.per_year is None or option.per_year is None:
        return option
    fixed = local.fixed_per_day
    spared_each = (cloud.per_day - (option.per_day - fixed)) / workload.per_day
    spared_running = spared_each * workload.per_day - local.running_per_day
    return msgspec.structs.replace(
        option,
        saving=plain(cloud.per_year - option.per_year),
        saving_share=float((cloud.per_day - option.per_day) / cloud.per_day) if cloud.per_day else None,
        break_even_per_day=fixed / spared_each if spared_each > 0 else None,
        never=spared_each <= 0,
        payback_months=(
            local.hardware / (spared_running * MONTH_DAYS) if local.hardware and spared_running > 0 else None
        ),
    )


def _variations(workload: Workload) -> list[tuple[str, Workload]]:
    change = msgspec.structs.replace
    found = [
        ("a tenth of the requests", change(workload, per_day=workload.per_day / 10)),
        ("half of the requests", change(workload, per_day=workload.per_day / 2)),
        ("twice the requests", change(workload, per_day=workload.per_day * 2)),
        ("ten times the requests", change(workload, per_day=workload.per_day * 10)),
        ("answers twice as long", change(workload, tokens_out=workload.tokens_out * 2)),
    ]
    if (share := workload.local_share) is not None:
        for points in (-20, 20):
            other = min(Decimal(1), max(Decimal(0), share + Decimal(points) / 100))
            found.append((f"local share {other:.0%}", change(workload, local_share=other)))
    return found
