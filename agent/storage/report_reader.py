"""What a report is made of: one row for each request, and the sums that outlive requests. Changes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from agent.records import RequestState
from agent.storage import report_statements as sql
from agent.storage.connection import Connection
from agent.storage.database import Database
from agent.types import Action, Reason, RequestKind

PAGE_ROWS = 2000  # the storage thread serves others between two pages


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one request, without its texts. Money in nanodollars; None is unknown."""

    id: str
    kind: RequestKind
    task: str | None
    arm: str | None
    model: str  # that was asked for, or chosen
    state: RequestState
    action: Action | None
    reason: Reason | None
    received_at_ms: int
    settled_at_ms: int | None
    answered_by: str | None  # "local" or the target's name
    target: str | None  # that it was accepted for
    local_model: str | None  # None: no local answer was made
    input_tokens: int | None  # of the local answer
    output_tokens: int | None
    tokens_estimated: bool
    target_model: str | None
    purpose: str | None  # of its outbox row: "answer" or "quality_sample"; None: it has none
    sends: int  # rows of costs
    unknown_sends: int  # of those, how many cost nobody knows what
    nanodollars: int  # of the others
    answer_nanodollars: int | None  # of the send that brought the answer; None: unknown, or there is none

    @property
    def is_served_locally(self) -> bool:
        """Whether the local answer was given as the answer, sure enough."""
        return self.state is RequestState.ANSWERED and self.action is Action.ANSWERED

    @property
    def is_resolved(self) -> bool:
        """Whether a target answered."""
        return self.state is RequestState.RESOLVED


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody said of the local answer of one request."""

    request_id: str
    origin: str
    verdict: str
    right: bool | None
    served: bool
    propensity: float | None


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """What a target was paid, whatever became of the requests. Nanodollars."""

    target: str
    model: str | None
    price: str | None  # and its date; None: unknown
    sends: int
    unknown: int  # sends that cost nobody knows what
    input_tokens: int
    output_tokens: int
    nanodollars: int


class LabelCount(msgspec.Struct, frozen=True, kw_only=True):
    """How often a label was the answer that was served."""

    task: str
    label: str
    answers: int


class ReportReader:
    """Reads what reports add up. A span is [since_ms, until_ms)."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def facts(self, since_ms: int, until_ms: int) -> AsyncIterator[Sequence[Fact]]:
        """Yield pages of the requests received in a span, oldest first."""
        after_id: str | None = None
        while found := await self.page(since_ms, until_ms, PAGE_ROWS, after_id):
            yield found
            after_id = found[-1].id

    async def page(self, since_ms: int, until_ms: int, limit: int, after_id: str | None) -> Sequence[Fact]:
        """Return the first requests received in a span, behind ``after_id``."""
        parameters = {
            "after_id": max(_floor(since_ms), after_id or ""),
            "until_id": _floor(until_ms),
            "limit": limit,
        }

        def work(connection: Connection) -> list[Fact]:
            return [_fact(row) for row in connection.execute(sql.REPORT_FACTS, parameters).fetchall()]

        return await self._db.read(work)

    async def judged(self, since_ms: int, until_ms: int) -> Sequence[Judged]:
        """Return what was said of requests received in a span."""
        parameters = {"after_id": _floor(since_ms), "until_id": _floor(until_ms)}

        def work(connection: Connection) -> list[Judged]:
            return [
                Judged(
                    request_id=row["request_id"],
                    origin=row["origin"],
                    verdict=row["verdict"],
                    right=None if row["is_right"] is None else bool(row["is_right"]),
                    served=bool(row["served"]),
                    propensity=row["propensity"],
                )
                for row in connection.execute(sql.REPORT_JUDGED, parameters).fetchall()
            ]

        return await self._db.read(work)

    async def spent(self, since_ms: int, until_ms: int) -> Sequence[Spent]:
        """Return what was paid in a span, by target and price."""

        def work(connection: Connection) -> list[Spent]:
            found = connection.execute(sql.REPORT_SPENT, {"since_ms": since_ms, "until_ms": until_ms}).fetchall()
            return [Spent(**{field: row[field] for field in Spent.__struct_fields__}) for row in found]

        return await self._db.read(work)

    async def labels(self, since_ms: int, until_ms: int) -> Sequence[LabelCount]:
        """Return the labels that were served on the UTC days of a span, the most frequent first."""
        parameters = {"first_day": _day(since_ms), "last_day": _day(until_ms - 1)}

        def work(connection: Connection) -> list[LabelCount]:
            found = connection.execute(sql.REPORT_LABELS, parameters).fetchall()
            return [LabelCount(task=row["task"], label=row["label"], answers=row["answers"]) for row in found]

        return await self._db.read(work)


def _fact(row: Any) -> Fact:
    return Fact(
        id=row["id"],
        kind=RequestKind(row["kind"]),
        task=row["task"],
        arm=row["arm"],
        model=row["model"],
        state=RequestState(row["state"]),
        action=Action(row["action"]) if row["action"] else None,
        reason=Reason(row["reason"]) if row["reason"] else None,
        received_at_ms=row["received_at_ms"],
        settled_at_ms=row["settled_at_ms"],
        answered_by=row["answered_by"],
        target=row["accepted_target"],
        local_model=row["local_model"],
        input_tokens=row["input_tokens"],
        output_tokens=row["output_tokens"],
        tokens_estimated=bool(row["tokens_estimated"]),
        target_model=row["target_model"],
        purpose=row["purpose"],
        sends=row["sends"],
        unknown_sends=row["unknown_sends"],
        nanodollars=row["nanodollars"],
        answer_nanodollars=row["answer_nanodollars"],
    )


def _floor(at_ms: int) -> str:
    """Return what sorts before every UUIDv7 of this moment and after, and after all earlier ones."""
    digits = f"{max(0, min(at_ms, (1 << 48) - 1)):012x}"
    return f"{digits[:8]}-{digits[8:]}"


def _day(at_ms: int) -> str:
    return datetime.fromtimestamp(max(0, at_ms) / 1000, UTC).date().isoformat()
