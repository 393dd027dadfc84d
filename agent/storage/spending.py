"""What targets have cost today and this month, and whether one more send fits into the budgets.

Before bytes leave, the most that their answer can cost is added (reserved) in the transaction that
makes the attempt durable; that transaction refuses what would pass a budget. All writes go through
one thread, so sends at the same time cannot pass it together. When the outcome is known, what the
target counted stands in place of what was reserved; where nobody knows, the reserved amount stays.

Days and months are those of UTC.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec

from agent.egress_settings import BudgetSettings
from agent.storage import statements as sql
from agent.storage.connection import Connection

DAY, MONTH = "day", "month"


class Amount(msgspec.Struct, frozen=True):
    """Tokens in both directions, and money; None: the price is unknown."""

    tokens: int = 0
    nanodollars: int | None = 0


class OverBudget(msgspec.Struct, frozen=True):
    """Why a row cannot be sent now, and when that may change."""

    reason: str
    until_ms: int


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """One ceiling of a budget and how far it is used up, sends under way included."""

    budget: str
    period: str  # day or month, of UTC
    unit: str  # dollars or tokens
    ceiling: Decimal
    spent: Decimal
    target: str
    task: str
    until_ms: int  # the end of the period

    @property
    def used_up(self) -> bool:
        """Whether nothing more fits, however small."""
        return self.spent >= self.ceiling


def standings(connection: Connection, budgets: Sequence[BudgetSettings], now_ms: int) -> Sequence[Standing]:
    """Return how every ceiling of every budget stands."""
    return [standing for budget in budgets for standing, _ in _ceilings(connection, budget, now_ms)]


def over_budget(
    connection: Connection,
    budgets: Sequence[BudgetSettings],
    target: str,
    task: str | None,
    amount: Amount,
    now_ms: int,
) -> OverBudget | None:
    """Return why ``amount`` more for this target and task does not fit, or None. The last to end comes first."""
    found: OverBudget | None = None
    for budget in budgets:
        if budget.target not in {"", target} or budget.task not in {"", task or ""}:
            continue
        for standing, per_unit in _ceilings(connection, budget, now_ms):
            more = amount.nanodollars if standing.unit == "dollars" else amount.tokens
            if more is None:
                why = f"budget {budget.name} counts dollars and the price of {target} is unknown"
            elif standing.spent + Decimal(more) / per_unit <= standing.ceiling:
                continue
            else:
                why = (
                    f"over budget {budget.name} until {_moment(standing.until_ms)}: {standing.spent:f} of "
                    f"{standing.ceiling:f} {standing.unit} of the {standing.period} are spent or reserved, "
                    f"this may take {Decimal(more) / per_unit:f}"
                )
            if found is None or standing.until_ms > found.until_ms:
                found = OverBudget(why, standing.until_ms)
    return found


def reserve(connection: Connection, lease: str, target: str, task: str | None, amount: Amount, now_ms: int) -> None:
    """Count ``amount`` as spent on the attempt of this lease until it is known what it cost."""
    day = _day(now_ms)
    money = amount.nanodollars or 0
    connection.execute(
        sql.ATTEMPT_RESERVE,
        {"lease": lease, "tokens": amount.tokens, "nanodollars": money, "day": day, "task": task or ""},
    )
    _add(connection, day, target, task or "", amount.tokens, money)


def give_back(connection: Connection, attempt: Any) -> None:
    """Take what was reserved for an attempt off again: it has ended."""
    if attempt["day"] is not None:
        _add(
            connection,
            attempt["day"],
            attempt["target"],
            attempt["task"],
            -attempt["reserved_tokens"],
            -attempt["reserved_nanodollars"],
        )


def book(connection: Connection, lease: str, amount: Amount | None) -> None:
    """Count what the ended attempt of this lease cost; None: nobody knows, so what was reserved."""
    attempt = connection.execute(sql.ATTEMPT_BY_LEASE, {"lease": lease}).fetchone()
    if attempt is None or attempt["day"] is None:
        return
    tokens = attempt["reserved_tokens"] if amount is None else amount.tokens
    money = attempt["reserved_nanodollars"] if amount is None or amount.nanodollars is None else amount.nanodollars
    _add(connection, attempt["day"], attempt["target"], attempt["task"], tokens, money)


def _add(connection: Connection, day: str, target: str, task: str, tokens: int, nanodollars: int) -> None:
    parameters = {"day": day, "target": target, "task": task, "tokens": tokens, "nanodollars": nanodollars}
    connection.execute(sql.SPENT_ADD, parameters)


def _ceilings(connection: Connection, budget: BudgetSettings, now_ms: int) -> Iterator[tuple[Standing, Decimal]]:
    """Yield how each ceiling of a budget stands, with how many of what is stored make one of its unit."""
    for period, first_day, until_ms in _periods(now_ms):
        dollars = budget.dollars_per_day if period == DAY else budget.dollars_per_month
        tokens = budget.tokens_per_day if period == DAY else budget.tokens_per_month
        if dollars is None and tokens is None:
            continue
        scope = {"first_day": first_day, "last_day": _day(now_ms), "target": budget.target, "task": budget.task}
        spent = connection.execute(sql.SPENT, scope).fetchone()
        for unit, ceiling, used, per_unit in (
            ("dollars", dollars, spent["nanodollars"], Decimal(10**9)),
            ("tokens", tokens, spent["tokens"], Decimal(1)),
        ):
            if ceiling is not None:
                yield (
                    Standing(
                        budget=budget.name,
                        period=period,
                        unit=unit,
                        ceiling=Decimal(ceiling),
                        spent=Decimal(used) / per_unit,
                        target=budget.target,
                        task=budget.task,
                        until_ms=until_ms,
                    ),
                    per_unit,
                )


def _periods(now_ms: int) -> Sequence[tuple[str, str, int]]:
    """Return (period, its first day, the moment of its end) of the day and the month of a moment."""
    today = datetime.fromtimestamp(now_ms / 1000, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    first = today.replace(day=1)
    next_month = (first + timedelta(days=32)).replace(day=1)
    return [
        (DAY, today.date().isoformat(), round((today + timedelta(days=1)).timestamp() * 1000)),
        (MONTH, first.date().isoformat(), round(next_month.timestamp() * 1000)),
    ]


def _day(now_ms: int) -> str:
    return datetime.fromtimestamp(now_ms / 1000, UTC).date().isoformat()


def _moment(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
