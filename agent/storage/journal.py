"""Requests and their results: durable before any work, settled in one transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from agent.errors import BodyGone, IdempotencyMismatch, NotFound, StillRunning, WrongState
from agent.identifiers import uuid7
from agent.records import Accepted, EscalationState, RequestRecord, RequestState
from agent.settings import QueueSettings
from agent.storage import figures, rows, subjects, transitions
from agent.storage import statements as sql
from agent.storage.ceiling import has_room, make_room
from agent.storage.changes import Changes
from agent.storage.connection import Connection
from agent.storage.database import Database
from agent.storage.retention import LATE, Retention, forget
from agent.telemetry import LOG, METRICS
from agent.token_estimate import estimate
from agent.types import (
    Action,
    Confidence,
    Decision,
    EgressPolicy,
    Failure,
    FailureKind,
    Generation,
    InferenceRequest,
    Reason,
)

TERMINAL = frozenset(RequestState) - {RequestState.RUNNING, RequestState.QUEUED}
NOWHERE = Accepted()
MOST_LIVES = 20  # of the daemon, in which a request in the background is begun: it may be what ends them
_LAST_ID = "~"  # sorts after every UUID
_Records = list[RequestRecord]  # inside the class, `list` is the method
_Opened = Sequence[tuple[InferenceRequest, Accepted]]


class Journal:
    """The requests of one database. Every method returns after the commit."""

    def __init__(self, database: Database, changes: Changes, queue: QueueSettings, retention: Retention) -> None:
        self._db = database
        self._changes = changes
        self._queue = queue
        self._retention = retention

    async def open(
        self, request: InferenceRequest, accepted: Accepted = NOWHERE, *, now_ms: int
    ) -> RequestRecord | None:
        """Store a new request with its route and return None, or return the record of its Idempotency-Key.

        The key of a request that failed, or that its caller left, is free again. Raises
        IdempotencyMismatch (another body), StillRunning (not in the background), BodyGone, or DiskFull.
        """

        def work(connection: Connection) -> RequestRecord | None:
            if request.idempotency_key is not None:
                known = _known(connection, request)
                if known is not None:
                    return known
            _insert(connection, request, accepted)
            return None

        return await self._db.write(work, grows=True)

    async def settle(
        self,
        request: InferenceRequest,
        generation: Generation | None,
        confidence: Confidence | None,
        decision: Decision,
        *,
        now_ms: int,
    ) -> RequestRecord:
        """Store the result and what was decided, in one transaction, and return the record with its texts.

        A queued decision also makes the outbox row: pending when the policy is ``allow`` and
        there is a target, else awaiting_approval. Of a request that is not to be stored the texts
        go in this very transaction, unless it waits. Raises QueueFull at the ceiling (nothing is
        changed), WrongState when the request is not running.
        """
        dropped: list[str] = []

        def work(connection: Connection) -> RequestRecord:
            return self._settle(connection, request, generation, confidence, decision, now_ms, dropped)

        record = await self._db.write(work)
        self._changes.publish(request.id)
        self._tell_dropped(dropped)
        return record

    async def record(
        self,
        request: InferenceRequest,
        accepted: Accepted,
        generation: Generation | None,
        confidence: Confidence | None,
        decision: Decision,
        *,
        now_ms: int,
    ) -> RequestRecord:
        """Store a request that was not opened, with its result and decision: ``open`` and ``settle`` in one.

        Raises as they do; nothing is stored then.
        """
        dropped: list[str] = []

        def work(connection: Connection) -> RequestRecord:
            _insert(connection, request, accepted)
            return self._settle(connection, request, generation, confidence, decision, now_ms, dropped)

        record = await self._db.write(work, grows=True)
        self._tell_dropped(dropped)
        return record

    def _tell_dropped(self, request_ids: Sequence[str]) -> None:
        """Tell of rows that went for a new one: never silently."""
        if request_ids:
            policy = self._queue.when_full
            METRICS.count("queue_drops", len(request_ids), policy=policy.value)
            LOG.warning("the queue is full: %d rows were dropped (%s)", len(request_ids), policy.value)
            self._changes.publish(*request_ids)

    def _settle(
        self,
        connection: Connection,
        request: InferenceRequest,
        generation: Generation | None,
        confidence: Confidence | None,
        decision: Decision,
        now_ms: int,
        dropped: list[str],
    ) -> RequestRecord:
        state = _state_of(decision)
        answered = generation is not None and generation.failure is None and decision.action is not Action.REFUSED
        changed = connection.execute(
            sql.REQUEST_SETTLE,
            {
                "id": request.id,
                "state": state.value,
                "now_ms": now_ms,
                "action": decision.action.value,
                "reason": decision.reason.value,
                "confidence": rows.text(confidence),
                "decision": rows.text(decision),
                "answered_by": rows.LOCAL if answered else None,
                "bodies_until_ms": self._retention.until_ms(state, now_ms),
                "forget": False,
            },
        ).rowcount
        if not changed:
            raise _not_running(connection, request.id)
        if generation is not None:
            connection.execute(
                sql.RESULT_PUT,
                {
                    "request_id": request.id,
                    "source": rows.LOCAL,
                    "now_ms": now_ms,
                    "body": rows.pack(generation),
                    **figures.of_generation(request, generation),
                },
            )
            figures.count_label(connection, request, generation.text, decision.action, now_ms)
        keeps = request.response is None or request.response.store
        drawn = state is RequestState.ANSWERED and decision.propensity is not None and keeps
        until_ms: int | None = None
        if drawn and has_room(connection, self._queue):
            until_ms = self._retention.until_ms(state, now_ms)  # as long as its text stays
        if state is RequestState.QUEUED or until_ms is not None:
            dropped[:] = self._enqueue(connection, request, generation, decision, now_ms, until_ms)
        record = rows.read_record(connection, request.id)
        assert record is not None
        if self._retention.forgets(state) or not (keeps or state is RequestState.QUEUED):
            forget(connection, request.id)
        return record

    def _enqueue(
        self,
        connection: Connection,
        request: InferenceRequest,
        generation: Generation | None,
        decision: Decision,
        now_ms: int,
        sample_until_ms: int | None = None,
    ) -> list[str]:
        """Make the row of a queued decision, or of a served answer to be checked. Returns the requests dropped for it."""
        body_bytes = connection.execute(sql.REQUEST_BODY_LENGTH, {"id": request.id}).fetchone()["bytes"]
        expected = estimate(request, generation, decision.handoff)
        dropped = make_room(
            connection, self._queue, self._retention, body_bytes, priority=decision.priority, now_ms=now_ms
        )
        egress = decision.egress or EgressPolicy.APPROVE
        if egress is EgressPolicy.NEVER:
            raise WrongState("a request that must not leave cannot be queued")
        allowed = egress in {EgressPolicy.ALLOW, EgressPolicy.REDACT} and decision.target is not None
        connection.execute(
            sql.ESCALATION_INSERT,
            {
                "id": uuid7(now_ms),
                "request_id": request.id,
                "state": (EscalationState.PENDING if allowed else EscalationState.AWAITING_APPROVAL).value,
                "reason": (Reason.NO_TARGET if decision.target is None else decision.reason).value,
                "target": decision.target,
                "target_fingerprint": decision.target_fingerprint,
                "egress": egress.value,
                "handoff": decision.handoff.value,
                "allowed": allowed,
                "max_attempts": self._queue.max_attempts,
                "now_ms": now_ms,
                "expires_at_ms": sample_until_ms or now_ms + (decision.wanted_s or self._queue.ttl_s) * 1000,
                "priority": decision.priority,
                "next_targets": transitions.packed(decision.fallbacks),
                "bytes": body_bytes,
                "task": request.task,
                "estimated_input_tokens": expected.input_tokens,
                "estimated_output_tokens": expected.output_tokens,
                "purpose": "answer" if sample_until_ms is None else "quality_sample",
            },
        )
        return dropped

    async def get(self, request_id: str, *, now_ms: int | None = None, fetched: bool = False) -> RequestRecord | None:
        """Return a request or None. ``fetched`` (with ``now_ms``) says that its owner now has the late answer."""
        if not fetched:
            return await self._db.read(lambda connection: rows.read_record(connection, request_id))
        if now_ms is None:
            raise ValueError("fetched needs now_ms")
        record = await self.get(request_id)
        if record is None or record.state not in LATE:
            return record
        until_ms = self._retention.fetched_until_ms(now_ms)

        def work(connection: Connection) -> RequestRecord | None:
            record = rows.read_record(connection, request_id)
            connection.execute(sql.REQUEST_FETCHED, {"id": request_id, "now_ms": now_ms, "bodies_until_ms": until_ms})
            return record

        return await self._db.write(work)

    async def late(self, since_ms: int | None, after_id: str, limit: int) -> _Records:
        """Return requests that waited and have come to an end, with their texts: since then, or (None) those not fetched."""

        def work(connection: Connection) -> _Records:
            parameters = {"since_ms": since_ms, "after_id": after_id, "limit": limit}
            found = [
                rows.read_record(connection, row["id"])
                for row in connection.execute(sql.REQUEST_LATE, parameters).fetchall()
            ]
            return [record for record in found if record is not None]

        return await self._db.read(work)

    async def list(self, state: RequestState | None = None, limit: int = 50, before_id: str | None = None) -> _Records:
        """Return requests without bodies, newest first; ``before_id`` goes on after an earlier page."""

        def work(connection: Connection) -> _Records:
            statement = sql.REQUEST_LIST if state is None else sql.REQUEST_LIST_STATE
            parameters = {"state": state, "before_id": before_id or _LAST_ID, "limit": limit}
            if state is None:
                del parameters["state"]
            return [
                rows.record(row, [], connection.execute(sql.ESCALATION_OF_REQUEST, {"id": row["id"]}).fetchone())
                for row in connection.execute(statement, parameters).fetchall()
            ]

        return await self._db.read(work)

    async def watch(self, request_id: str) -> AsyncIterator[RequestRecord]:
        """Yield the current record, then one after each change, until a terminal state. Raises NotFound."""
        with self._changes.watcher(request_id) as changed:
            last: RequestRecord | None = None
            while True:
                record = await self.get(request_id)
                if record is None:
                    raise NotFound(f"there is no request {request_id}")
                if record != last:
                    yield record
                    last = record
                if record.state in TERMINAL:
                    return
                await changed.wait()
                changed.clear()

    async def counts(self) -> dict[str, int]:
        """Return the number of requests in every state, from counters."""

        def work(connection: Connection) -> dict[str, int]:
            found = {row["state"]: row["n_rows"] for row in connection.execute(sql.REQUEST_COUNTS).fetchall()}
            return {state.value: found.get(state.value, 0) for state in RequestState}

        return await self._db.read(work)

    async def running(self, limit: int = 1000) -> _Opened:
        """Return requests that are not settled, each with its route, oldest first. At start they are of an earlier life.

        Without those in the background: they are taken up again.
        """
        return await self._db.read(lambda connection: _opened(connection, sql.REQUEST_RUNNING, limit))

    async def begin_life(self) -> None:
        """Count this life of the daemon for the requests in the background. Once at its start, before ``running``."""
        parameters = {"most_lives": MOST_LIVES}
        await self._db.write(lambda connection: connection.execute(sql.REQUEST_LIVES, parameters).rowcount)

    async def take_up(self) -> _Opened:
        """Return the requests in the background that are not settled, oldest first."""
        return await self._db.read(lambda connection: _opened(connection, sql.REQUEST_BACKGROUND, -1))

    async def delete(self, request_id: str) -> None:
        """Remove a settled request with its texts. Raises NotFound, or WrongState for one that is open, or whose row is."""

        def work(connection: Connection) -> None:
            if not connection.execute(sql.REQUEST_DELETE_ENDED, {"id": request_id}).rowcount:
                row = connection.execute(sql.REQUEST_GET, {"id": request_id}).fetchone()
                if row is None:
                    raise NotFound(f"there is no request {request_id}")
                state = row["state"] if row["state"] in {"running", "queued"} else "being checked by a target"
                raise WrongState(f"request {request_id} is {state}: cancel it first")

        await self._db.write(work)
        self._changes.publish(request_id)


def _insert(connection: Connection, request: InferenceRequest, accepted: Accepted) -> None:
    connection.execute(
        sql.REQUEST_OPEN,
        {
            "id": request.id,
            "kind": request.kind.value,
            "model": request.model,
            "idempotency_key": request.idempotency_key,
            "body_sha256": request.body_sha256,
            "received_at_ms": request.received_at_ms,
            "accepted_egress": accepted.egress.value,
            "accepted_target": accepted.target,
            "accepted_fingerprint": accepted.target_fingerprint,
            "lives": 1 if request.background else None,
            "body": rows.pack(request),
            "task": request.task,
            "arm": request.arm,
        },
    )
    subjects.tag_request(connection, request)


def _opened(connection: Connection, statement: str, limit: int) -> _Opened:
    found = connection.execute(statement, {"limit": limit}).fetchall()
    return [(rows.unpack_request(row["body"]), rows.accepted(row)) for row in found]


def _known(connection: Connection, request: InferenceRequest) -> RequestRecord | None:
    """Return what is stored under the request's key, or None after freeing the key."""
    row = connection.execute(sql.REQUEST_OF_KEY, {"key": request.idempotency_key}).fetchone()
    if row is None:
        return None
    if row["body_sha256"] != request.body_sha256:
        raise IdempotencyMismatch(
            "this Idempotency-Key came with another body before; use a new key", param="Idempotency-Key"
        )
    if row["state"] == RequestState.RUNNING and not request.background:
        raise StillRunning(f"request {row['id']} of this Idempotency-Key is still running; ask again later")
    record = rows.read_record(connection, row["id"])
    assert record is not None
    if record.state is RequestState.FAILED or (record.state is RequestState.CANCELLED and record.escalation is None):
        connection.execute(sql.REQUEST_RELEASE_KEY, {"id": record.id})
        return None
    if row["gone"]:
        raise BodyGone(f"the texts of request {record.id} are gone, their retention has passed; use a new key")
    return record


def _state_of(decision: Decision) -> RequestState:
    if decision.action is Action.QUEUED:
        return RequestState.QUEUED
    if decision.action is Action.REFUSED:
        return RequestState.CANCELLED if decision.reason is Reason.CANCELLED else RequestState.FAILED
    return RequestState.ANSWERED


def _not_running(connection: Connection, request_id: str) -> NotFound | WrongState:
    row = connection.execute(sql.REQUEST_GET, {"id": request_id}).fetchone()
    if row is None:
        return NotFound(f"there is no request {request_id}: it was erased while it ran")
    return WrongState(f"request {request_id} is {row['state']}, not running; it is settled already")


def cut_short() -> Generation:
    """What is known of a generation that the end of its daemon cut short."""
    return Generation(failure=Failure(FailureKind.CRASH, "the daemon stopped while the answer was made"))
