"""The outbox: rows that wait for a target, and the state machine that they walk.

Claiming is one statement with a fresh random lease. Every settle is guarded by that lease:
when it is lost, LeaseLost is raised and nothing has changed. Each change of a row changes
its request in the same transaction.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from agent import feedback
from agent.egress_settings import BudgetSettings
from agent.errors import WrongState
from agent.identifiers import uuid7
from agent.records import CloudAnswer, Escalation, EscalationState, Feedback, HoldReason, RequestRecord
from agent.storage import costs, figures, rows, spending
from agent.storage import statements as sql
from agent.storage.connection import Connection
from agent.storage.feedback_store import put_feedback
from agent.storage.outbox_by_hand import OutboxByHand
from agent.storage.outbox_reader import LOWEST_PRIORITY
from agent.storage.retention import CHUNK_ROWS
from agent.storage.spending import Amount, OverBudget
from agent.storage.transitions import (
    again,
    count_attempt,
    end,
    finish_attempt,
    held,
    hold_changed,
    move_on,
    wait_for_person,
)
from agent.types import EgressPolicy

MOST_PASSED_OVER = 256  # rows that a budget holds, in one transaction of a claim
SNOOZES_PER_ATTEMPT = 8  # a row that is put off this often, each time by a reply, has cost an attempt
NOTHING = Amount()

_Rows = list[Escalation]


class Outbox(OutboxByHand):
    """The outbox of one database. Every method returns after the commit."""

    passed_on = 0  # rows that went on to another target, because no budget had room for them

    # --- sending ----------------------------------------------------------------------

    async def claim(
        self, target: str, *, now_ms: int, lease_ms: int, least: int = LOWEST_PRIORITY
    ) -> tuple[Escalation, RequestRecord] | None:
        """Lease the next row for ``target`` (priority, then place in line) that may go, is due and has not expired.

        Rows that no budget has room for, by what they are expected to take, are put off until it has.
        """

        def work(connection: Connection) -> tuple[Escalation, RequestRecord] | None:
            connection.execute(sql.ESCALATION_PROMOTE, {"target": target, "now_ms": now_ms})
            for _ in range(MOST_PASSED_OVER):
                row = connection.execute(
                    sql.ESCALATION_CLAIM,
                    {
                        "target": target,
                        "least": least,
                        "now_ms": now_ms,
                        "lease": secrets.token_hex(16),
                        "lease_expires_at_ms": now_ms + lease_ms,
                    },
                ).fetchone()
                if row is None:
                    return None
                if not self.budgets or self._fits(connection, row, self._expected(row), now_ms) is None:
                    record = rows.read_record(connection, row["request_id"])
                    assert record is not None
                    return rows.escalation(row), record
            return None

        claimed = await self._db.write(work)
        if claimed:
            self._changes.publish(claimed[1].id)
        return claimed

    def _expected(self, row: Any) -> Amount:
        tokens_in, tokens_out = row["estimated_input_tokens"], row["estimated_output_tokens"]
        charge = self.charging(row["target"], tokens_in, tokens_out)
        return Amount(tokens_in + tokens_out, None if charge is None else charge.nanodollars)

    def _fits(self, connection: Connection, row: Any, amount: Amount, now_ms: int) -> OverBudget | None:
        """Return None when a budget has room for a leased row; else put it off, or to its next target, and return why."""
        over = spending.over_budget(connection, self.budgets, row["target"], row["task"], amount, now_ms)
        if over is None:
            return None
        if move_on(connection, row, over.reason, now_ms) is None:
            connection.execute(
                sql.ESCALATION_PUT_OFF,
                {"id": row["id"], "lease": row["lease"], "error": over.reason, "available_at_ms": over.until_ms},
            )
        else:
            self.passed_on += 1
        return over

    async def begin_send(
        self,
        row: Escalation,
        *,
        body_sha256: str,
        body_bytes: int,
        now_ms: int,
        policy: EgressPolicy = EgressPolicy.ALLOW,
        redactions: Mapping[str, int] = {},
        most: Amount = NOTHING,
    ) -> OverBudget | None:
        """Record that ``body_bytes`` are about to leave, by which policy and without what, and reserve the ``most`` that they may cost.

        Durable before this returns; once per lease. A row that no budget has room for is put off
        instead, and the reason returned: it is not leased any more. Raises LeaseLost.
        """

        def work(connection: Connection) -> OverBudget | None:
            leased = held(connection, row)
            if connection.execute(sql.ATTEMPT_OF_LEASE, {"lease": row.lease}).fetchone():
                raise WrongState(f"escalation {row.id} is being sent already under this lease")
            if over := self._fits(connection, leased, most, now_ms):
                return over
            connection.execute(
                sql.ATTEMPT_BEGIN,
                {
                    "escalation_id": row.id,
                    "lease": row.lease,
                    "target": row.target,
                    "body_sha256": body_sha256,
                    "body_bytes": body_bytes,
                    "now_ms": now_ms,
                    "policy": policy.value,
                    "redactions": json.dumps(dict(redactions), sort_keys=True),
                },
            )
            spending.reserve(connection, leased["lease"], leased["target"], leased["task"], most, now_ms)
            return None

        return await self._db.write(work)

    async def standings(self, budgets: Sequence[BudgetSettings], now_ms: int) -> Sequence[spending.Standing]:
        """Return how far each ceiling of these budgets is used up."""
        return await self._db.read(lambda connection: spending.standings(connection, budgets, now_ms))

    async def succeed(self, row: Escalation, answer: CloudAnswer, *, now_ms: int) -> RequestRecord:
        """Join the answer to its request. Returns the request with both answers. Raises LeaseLost.

        What it says of the local answer of a task is kept as feedback, in the same transaction.
        """
        counted: list[Feedback] = []

        def work(connection: Connection) -> RequestRecord:
            counted.clear()  # of an earlier try
            leased = held(connection, row)
            finish_attempt(connection, leased, "succeeded", None, left=True, now_ms=now_ms)
            connection.execute(
                sql.RESULT_PUT,
                {
                    "request_id": leased["request_id"],
                    "source": rows.TARGET,
                    "now_ms": now_ms,
                    "body": rows.pack(answer),
                    **figures.of_answer(answer),
                },
            )
            costs.spend(connection, leased, "succeeded", costs.of_answer(answer), self.charging, now_ms)
            figures.count_late_label(connection, leased["request_id"], answer, now_ms)
            end(connection, self._retention, leased, EscalationState.SUCCEEDED, now_ms=now_ms)
            record = rows.read_record(connection, leased["request_id"])
            assert record is not None
            compared = feedback.of_target(record, answer, id=uuid7(now_ms), now_ms=now_ms)
            if compared is not None and put_feedback(connection, compared):
                counted.append(compared)
            return record

        record = await self._db.write(work)
        self._changes.publish(row.request_id)
        for one in counted:
            self.on_feedback(one)
        return record

    async def snooze(
        self,
        row: Escalation,
        *,
        available_at_ms: int,
        reason: str,
        left: bool,
        now_ms: int,
        replied: bool = False,
    ) -> Escalation:
        """Put the row back until ``available_at_ms``, behind the others; not an attempt. Raises LeaseLost.

        ``replied``: somebody answered. Every ``SNOOZES_PER_ATTEMPT`` of those count as an attempt,
        so that a row which is only ever put off ends.
        """

        def work(connection: Connection) -> Escalation:
            leased = held(connection, row)
            finish_attempt(connection, leased, "snoozed", reason, left=left, now_ms=now_ms)
            snoozes = leased["snoozes"] + replied
            if snoozes >= SNOOZES_PER_ATTEMPT:
                return count_attempt(
                    connection, self._retention, leased, available_at_ms=available_at_ms, error=reason, now_ms=now_ms
                )
            return again(
                connection,
                leased,
                attempts=leased["attempts"],
                snoozes=snoozes,
                available_at_ms=available_at_ms,
                error=reason,
                now_ms=now_ms,
            )

        return await self._changed(work)

    async def retry(self, row: Escalation, *, available_at_ms: int, reason: str, left: bool, now_ms: int) -> Escalation:
        """Count an attempt and put the row back, or end it as dead when attempts are used up. Raises LeaseLost."""

        def work(connection: Connection) -> Escalation:
            leased = held(connection, row)
            finish_attempt(connection, leased, "retry", reason, left=left, now_ms=now_ms)
            if left:
                costs.spend(connection, leased, "retry", None, self.charging, now_ms)
            return count_attempt(
                connection, self._retention, leased, available_at_ms=available_at_ms, error=reason, now_ms=now_ms
            )

        return await self._changed(work)

    async def reject(
        self, row: Escalation, *, reason: str, left: bool, now_ms: int, used: costs.Used | None = None
    ) -> Escalation:
        """End the row as dead, or put it to its next target: this one will not take it. ``used``: it was paid for all the same. Raises LeaseLost."""

        def work(connection: Connection) -> Escalation:
            leased = held(connection, row)
            finish_attempt(connection, leased, "rejected", reason, left=left, now_ms=now_ms)
            if used is not None:
                costs.spend(connection, leased, "rejected", used, self.charging, now_ms)
            if left and (moved := move_on(connection, leased, reason, now_ms)):
                return moved
            return end(
                connection, self._retention, leased, EscalationState.DEAD, reason=reason, error=reason, now_ms=now_ms
            )

        return await self._changed(work)

    async def hold(self, row: Escalation, reason: HoldReason, *, now_ms: int) -> Escalation:
        """Put a leased row, of which nothing has left under this lease, before a person. Raises LeaseLost."""

        def work(connection: Connection) -> Escalation:
            leased = held(connection, row)
            finish_attempt(connection, leased, "snoozed", reason, left=False, now_ms=now_ms)
            return wait_for_person(connection, leased, reason)

        return await self._changed(work)

    async def hold_pending(self, target: str, *, fingerprint: str, only_released: bool) -> int:
        """Put rows before a person that were accepted for another address or model of ``target``.

        ``only_released``: also those that no person has released. Returns how many.
        """
        parameters = {
            "target": target,
            "target_fingerprint": fingerprint,
            "only_released": only_released,
            "limit": CHUNK_ROWS,
        }

        return await self._in_chunks(lambda connection: hold_changed(connection, parameters))

    async def pass_on(self, target: str, why: str, *, before_ms: int, now_ms: int) -> int:
        """Put rows that have waited for ``target`` since ``before_ms`` to their next ones. Returns how many."""
        parameters = {"target": target, "before_ms": before_ms, "limit": CHUNK_ROWS}

        def work(connection: Connection) -> _Rows:
            found = connection.execute(sql.ESCALATION_TO_MOVE_ON, parameters).fetchall()
            return [moved for row in found if (moved := move_on(connection, row, why, now_ms))]

        return await self._in_chunks(work)

    async def rescue(self, now_ms: int, *, every_lease: bool = False) -> int:
        """Take back leases that expired (at start: every lease of an earlier life). Returns how many.

        Each counts as an attempt. A send whose outcome nobody knows is logged as such.
        """
        await self._clock.follow(now_ms)

        def work(connection: Connection) -> _Rows:
            statement = sql.ESCALATION_LEASED if every_lease else sql.ESCALATION_OVERDUE
            parameters: dict[str, object] = {"limit": CHUNK_ROWS}
            if not every_lease:
                parameters["now_ms"] = now_ms
            rescued = []
            for leased in connection.execute(statement, parameters).fetchall():
                reason = "the lease ended before the send was settled"
                if finish_attempt(connection, leased, "unknown", reason, left=None, now_ms=now_ms):
                    costs.spend(connection, leased, "unknown", None, self.charging, now_ms)
                rescued.append(
                    count_attempt(
                        connection, self._retention, leased, available_at_ms=now_ms, error=reason, now_ms=now_ms
                    )
                )
            return rescued

        return await self._in_chunks(work)

    async def expire(self, now_ms: int) -> int:
        """End rows whose time to live has passed, in time that has really passed. Returns how many."""
        await self._clock.follow(now_ms)

        def work(connection: Connection) -> _Rows:
            found = connection.execute(sql.ESCALATION_TO_EXPIRE, {"now_ms": now_ms, "limit": CHUNK_ROWS}).fetchall()
            return [
                end(connection, self._retention, row, EscalationState.EXPIRED, reason="expired", now_ms=now_ms)
                for row in found
            ]

        return await self._in_chunks(work)
