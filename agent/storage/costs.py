"""What sends cost: one row for each that was paid for, or may have been. Unknown is NULL, never 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from agent.records import CloudAnswer
from agent.storage import spending
from agent.storage import statements as sql
from agent.storage.connection import Connection


class Charge(msgspec.Struct, frozen=True):
    """What some tokens cost at a target."""

    nanodollars: int
    price: str  # the price and its date, in words


Charging = Callable[[str, int, int], Charge | None]  # target, tokens in, tokens out; None: its price is unknown


class Used(msgspec.Struct, frozen=True):
    """What a target counted. A reply without a count has 0 tokens, which is unknown."""

    input_tokens: int
    output_tokens: int
    model: str = ""


def of_answer(answer: CloudAnswer) -> Used:
    """Return what a usable answer took."""
    return Used(answer.prompt_tokens, answer.output_tokens, answer.model)


def spend(connection: Connection, row: Any, outcome: str, used: Used | None, charging: Charging, now_ms: int) -> None:
    """Add the cost of a send of an outbox row. ``used`` None: nobody knows whether and for what it is charged."""
    counted = used if used is not None and used.input_tokens + used.output_tokens > 0 else None
    charge = charging(row["target"], counted.input_tokens, counted.output_tokens) if counted else None
    connection.execute(
        sql.COST_ADD,
        {
            "now_ms": now_ms,
            "request_id": row["request_id"],
            "escalation_id": row["id"],
            "target": row["target"],
            "model": used.model if used else None,
            "outcome": outcome,
            "input_tokens": counted.input_tokens if counted else None,
            "output_tokens": counted.output_tokens if counted else None,
            "nanodollars": charge.nanodollars if charge else None,
            "price": charge.price if charge else None,
        },
    )
    tokens = counted.input_tokens + counted.output_tokens if counted else 0
    taken = spending.Amount(tokens, charge.nanodollars if charge else None) if counted else None
    spending.book(connection, row["lease"], taken)
