"""The options of ``outrider report --plan``, and the plan in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agent.cli.output import printable
from agent.errors import InvalidRequest
from agent.escalation.prices import written

if TYPE_CHECKING:
    from agent.escalation.prices import Price
    from agent.report.plan import Option, Plan
    from agent.settings import Settings

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
WIDTH = 26


class Amount(click.ParamType):  # type: ignore[type-arg]  # of click 8.3 on
    """A decimal number of at least 0, exactly as it is written."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        try:
            found = Decimal(value)
        except InvalidOperation:
            self.fail(f"{value!r} is no number", param, ctx)
        if not found.is_finite() or found < 0:
            self.fail(f"{value!r} is no amount: it must be 0 or more", param, ctx)
        return found


AMOUNT = Amount()
OPTIONS = (
    click.option("--plan", is_flag=True, help="What a workload would cost, before anything is built."),
    click.option("--volume", type=AMOUNT, help="--plan: requests a day."),
    click.option("--tokens-in", type=click.IntRange(0), help="--plan: tokens of a request."),
    click.option("--tokens-out", type=click.IntRange(0), help="--plan: tokens of an answer."),
    click.option("--price-of", metavar="NAME", help="--plan: a target or a model of [[prices]]. Default: the target."),
    click.option("--price-in", type=AMOUNT, help="--plan: dollars per million tokens sent to the cloud."),
    click.option("--price-out", type=AMOUNT, help="--plan: dollars per million tokens of its answers."),
    click.option("--local-share", type=AMOUNT, help="--plan: what a hybrid serves locally, 0 to 1."),
    click.option("--router-cost", type=AMOUNT, help="--plan: what sorting costs a request of a hybrid, dollars."),
    click.option("--local-price-in", type=AMOUNT, help="--plan: per million tokens, of a hosted small model."),
    click.option("--local-price-out", type=AMOUNT, help="--plan: the same of its answers."),
    click.option("--per-hour", type=AMOUNT, help="--plan: rent of the local machine, dollars an hour."),
    click.option("--hardware", type=AMOUNT, help="--plan: price of the local machine, dollars."),
    click.option("--lifetime-months", type=AMOUNT, help="--plan: how long it lasts. Default: 36."),
    click.option("--watts", type=AMOUNT, help="--plan: what it draws, all day."),
    click.option("--per-kwh", type=AMOUNT, help="--plan: dollars for a kilowatt-hour."),
)
NAMES = ("volume", "tokens_in", "tokens_out", "price_of", "price_in", "price_out", "local_share", "router_cost",
         "local_price_in", "local_price_out", "per_hour", "hardware", "lifetime_months", "watts", "per_kwh")  # fmt: skip


def plan_options(command: Decorated) -> Decorated:
    """Add the options of a plan to a command."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def planned(settings: Settings, given: Mapping[str, Any]) -> Plan:
    """Return the plan that the options ask for. Raises InvalidRequest for those that are missing or contradict."""
    from agent.report.plan import LocalCosts, Workload, make_plan

    missing = [name for name in ("volume", "tokens_in", "tokens_out") if given[name] is None]
    if missing:
        raise InvalidRequest(f"--plan needs --{missing[0].replace('_', '-')}", param=missing[0])
    workload = Workload(
        per_day=given["volume"],
        tokens_in=given["tokens_in"],
        tokens_out=given["tokens_out"],
        local_share=given["local_share"],
        router=given["router_cost"] or Decimal(0),
    )
    local = LocalCosts(
        price=_pair(given, "local_price_in", "local_price_out", "the local model"),
        per_hour=given["per_hour"] or Decimal(0),
        hardware=given["hardware"] or Decimal(0),
        lifetime_months=given["lifetime_months"] if given["lifetime_months"] is not None else Decimal(36),
        watts=given["watts"] or Decimal(0),
        per_kwh=given["per_kwh"] or Decimal(0),
    )
    if bool(local.watts) != bool(local.per_kwh):
        raise InvalidRequest("--watts and --per-kwh go together: energy has no price without both")
    return make_plan(workload, _price(settings, given), local)


def _price(settings: Settings, given: Mapping[str, Any]) -> Price | None:
    from agent.escalation.prices import PriceBook

    own = _pair(given, "price_in", "price_out", "the command line")
    name = given["price_of"]
    if own is not None:
        if name is not None:
            raise InvalidRequest("--price-of and --price-in are both given: keep one")
        return own
    book = PriceBook(settings.targets, settings.prices)
    if name is None:
        return book.target(settings.targets[0].name) if settings.targets else None
    known = [*(target.name for target in settings.targets), *(price.name for price in settings.prices)]
    if name not in known:
        raise InvalidRequest(
            f"--price-of: there is no target or [[prices]] {name[:60]!r}; known are {', '.join(known) or 'none'}"
        )
    return book.target(name) or book.model(name)


def _pair(given: Mapping[str, Any], input_name: str, output_name: str, origin: str) -> Price | None:
    from agent.escalation.prices import Price

    first, second = given[input_name], given[output_name]
    if (first is None) != (second is None):
        raise InvalidRequest(f"--{input_name.replace('_', '-')} and --{output_name.replace('_', '-')} go together")
    return None if first is None else Price(input=first, output=second, origin=origin)


def plan_lines(plan: Plan) -> Iterator[str]:
    """Yield the plan in words."""
    from agent.escalation.charging import in_words

    work = plan.workload
    yield f"{work.per_day:,f} requests a day, {work.tokens_in} tokens in and {work.tokens_out} out"
    yield f"{'price':<{WIDTH}} {'unknown' if plan.price is None else printable(in_words(plan.price))}"
    for option in plan.options:
        yield ""
        yield from _option_lines(option)
    yield ""
    if plan.cheapest is None:
        yield "Cheapest: unknown. Say --price-in and --price-out, or put prices into the configuration ([[prices]])."
    else:
        yield f"Cheapest: {plan.cheapest}. Whether its answers are good enough, only `outrider evaluate` can tell."
    for one in plan.variations if plan.cheapest else ():
        saving = "" if one.saving_share is None or one.saving_share <= 0 else f", saves {one.saving_share:.0%}"
        yield f"  {one.what + ':':<{WIDTH - 2}} {one.cheapest}{saving}"
    if plan.local_is_free:
        yield "Local costs: none were given, so the local machine is counted as free (--per-hour, --hardware, --watts)."
    yield "Not in it: people, retries, cached or batch prices. A month has 30 days, a year 365."


def _option_lines(option: Option) -> Iterator[str]:
    yield (
        f"{option.name:<{WIDTH}} {written(option.per_request)} a request, {written(option.per_day)} a day, "
        f"{written(option.per_month)} a month, {written(option.per_year)} a year"
    )
    if option.saving is not None:
        share = "" if option.saving_share is None else f" ({option.saving_share:.1%})"
        yield f"  {'saving a year':<{WIDTH - 2}} {written(option.saving)}{share}"
        if option.never:
            yield f"  {'break-even':<{WIDTH - 2}} never: the cloud is cheaper at every volume"
        elif option.break_even_per_day is not None:
            yield f"  {'break-even':<{WIDTH - 2}} {option.break_even_per_day:,.0f} requests a day"
    if option.payback_months is not None:
        yield f"  {'hardware pays back in':<{WIDTH - 2}} {option.payback_months:.1f} months"
