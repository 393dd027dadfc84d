"""Two ways to the queue: over HTTP to a running daemon, else straight on the database.

Both give the same values: what ``GET /v1/queue`` and ``GET /v1/requests`` show.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import msgspec

from agent.api.chat_request import parse_messages
from agent.api.erase_routes import erased_object
from agent.api.fields import Fields
from agent.api.queue_routes import messages_object, row_object, standing_object
from agent.api.request_routes import record_object
from agent.cli.client import DaemonClient, find_daemon
from agent.configuration import LoadedSettings
from agent.errors import ConfigError, NotFound, StorageError
from agent.escalation.consent import as_told, under
from agent.escalation.handoff import with_last_text
from agent.escalation.prices import PriceBook
from agent.policy import PresentPolicy
from agent.records import Escalation, EscalationState, RequestRecord, RequestState
from agent.storage import Storage, open_storage
from agent.task_folder import folder_beside

Result = TypeVar("Result")
Row = dict[str, Any]
RELEASED_AT_ONCE = 5000  # ids in one call: far below the largest body of the queue's verbs


class Access(Protocol):
    """What the commands need of the queue, wherever it is."""

    running: bool  # whether a daemon is at the other end

    def counts(self) -> Row: ...
    def rows(self, state: str | None, limit: int, after: str | None = None) -> list[Row]: ...
    def row(self, row_id: str) -> Row: ...
    def as_sent(self, row_id: str, target: str | None) -> bytes: ...
    def release(self, ids: Sequence[str], target: str) -> int: ...
    def retry(self, row_id: str) -> Row: ...
    def cancel(self, row_id: str) -> Row: ...
    def edit(self, row_id: str, text: str | None, messages: Sequence[Row] | None) -> Row: ...
    def messages(self, row_id: str) -> list[Row]: ...
    def unfetched(self) -> int: ...
    def purge(self, *, unfetched: bool) -> int: ...
    def erase(self, subject: str, *, dry_run: bool) -> Row: ...
    def drain(self) -> None: ...
    def requests(self, state: str | None, limit: int) -> list[Row]: ...
    def request(self, request_id: str) -> Row: ...
    def egress(self, since_ms: int, limit: int) -> Row: ...
    def egress_page(self, after_id: int) -> list[Row]: ...
    def verify_egress(self) -> Row: ...
    def standings(self) -> list[Row]: ...


@contextmanager
def open_access(loaded: LoadedSettings) -> Iterator[Access]:
    """Reach the queue: the daemon if one runs, else the database itself (then no daemon can start)."""
    settings = loaded.settings
    if find_daemon(settings.data_path) is not None:
        with DaemonClient(settings) as client:
            yield DaemonAccess(client)
        return
    if not (settings.data_path / "outrider.db").exists():
        raise StorageError(f"there is no database in {settings.data_path} yet: `outrider serve` makes it")
    with asyncio.Runner() as runner:
        storage = runner.run(open_storage(settings.data_path, settings.queue, settings.retention, now_ms=now_ms()))
        try:
            yield DatabaseAccess(loaded, storage, runner)
        finally:
            runner.run(storage.close())


def now_ms() -> int:
    """The wall clock, in milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


class DaemonAccess:
    """The queue of a running daemon."""

    running = True

    def __init__(self, client: DaemonClient) -> None:
        self._client = client

    def counts(self) -> Row:
        found: Row = self._client.get("/v1/queue", limit=1)["counts"]
        return found

    def rows(self, state: str | None, limit: int, after: str | None = None) -> list[Row]:
        found: list[Row] = self._client.get("/v1/queue", state=state, limit=limit, after=after)["data"]
        return found

    def row(self, row_id: str) -> Row:
        found: Row = self._client.get(f"/v1/queue/{row_id}")
        return found

    def as_sent(self, row_id: str, target: str | None) -> bytes:
        return self._client.get_bytes(f"/v1/queue/{row_id}", as_sent=1, target=target)

    def release(self, ids: Sequence[str], target: str) -> int:
        released = 0
        for start in range(0, len(ids), RELEASED_AT_ONCE):
            body = {"target": target, "ids": list(ids[start : start + RELEASED_AT_ONCE])}
            released += int(self._client.post("/v1/queue/release", body, admin=True)["released"])
        return released

    def retry(self, row_id: str) -> Row:
        found: Row = self._client.post(f"/v1/queue/{row_id}/retry", admin=True)
        return found

    def cancel(self, row_id: str) -> Row:
        found: Row = self._client.post(f"/v1/queue/{row_id}/cancel", admin=True)
        return found

    def edit(self, row_id: str, text: str | None, messages: Sequence[Row] | None) -> Row:
        body = {"text": text} if messages is None else {"messages": list(messages)}
        found: Row = self._client.post(f"/v1/queue/{row_id}/edit", body, admin=True)
        return found

    def messages(self, row_id: str) -> list[Row]:
        found: list[Row] = self._client.get(f"/v1/queue/{row_id}/messages")["data"]
        return found

    def unfetched(self) -> int:
        return int(self._client.get("/v1/queue", limit=1)["unfetched"])

    def purge(self, *, unfetched: bool) -> int:
        return int(self._client.post("/v1/queue/purge", {"unfetched": unfetched}, admin=True)["purged"])

    def erase(self, subject: str, *, dry_run: bool) -> Row:
        found: Row = self._client.post("/v1/erase", {"subject": subject, "dry_run": dry_run}, admin=True)
        return found

    def drain(self) -> None:
        self._client.post("/v1/queue/drain", admin=True)

    def requests(self, state: str | None, limit: int) -> list[Row]:
        found: list[Row] = self._client.get("/v1/requests", state=state, limit=limit)["data"]
        return found

    def request(self, request_id: str) -> Row:
        found: Row = self._client.get(f"/v1/requests/{request_id}")
        return found

    def egress(self, since_ms: int, limit: int) -> Row:
        found: Row = self._client.get("/v1/egress", since_ms=since_ms, limit=limit)
        return found

    def egress_page(self, after_id: int) -> list[Row]:
        found: list[Row] = self._client.get("/v1/egress", after_id=after_id, limit=1000)["data"]
        return found

    def verify_egress(self) -> Row:
        found: Row = self._client.get("/v1/egress/verify")
        return found

    def standings(self) -> list[Row]:
        found: list[Row] = self._client.get("/v1/budget")["data"]
        return found


class DatabaseAccess:
    """The queue of a daemon that is down, under its instance lock."""

    running = False

    def __init__(self, loaded: LoadedSettings, storage: Storage, runner: asyncio.Runner) -> None:
        self._settings = settings = loaded.settings
        self._folder = folder_beside(loaded.path)
        self._storage = storage
        self._runner = runner
        self._prices = PriceBook(settings.targets, settings.prices)

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self._runner.run(work)

    def counts(self) -> Row:
        return self._run(self._storage.outbox.counts())

    def rows(self, state: str | None, limit: int, after: str | None = None) -> list[Row]:
        wanted = EscalationState(state) if state else None
        return [row_object(row, self._prices) for row in self._run(self._storage.outbox.list(wanted, limit, after))]

    def row(self, row_id: str) -> Row:
        return row_object(self._escalation(row_id), self._prices)

    def as_sent(self, row_id: str, target: str | None) -> bytes:
        from agent.cli.escalating import body_of

        row = self._escalation(row_id)
        record = self._record(row.request_id)
        told = PresentPolicy(self._folder, self._settings.keys).told(record)
        return body_of(self._settings, as_told(record, told), row, target)

    def release(self, ids: Sequence[str], target: str) -> int:
        by_name = {one.name: one for one in self._settings.targets}
        if target not in by_name:
            raise ConfigError(f"target {target} is not configured; known are {', '.join(by_name) or 'none'}")
        return self._run(
            self._storage.outbox.release(
                ids, target=target, fingerprint=by_name[target].fingerprint, configured=by_name, now_ms=now_ms()
            )
        )

    def retry(self, row_id: str) -> Row:
        row = self._escalation(row_id)
        hold = under(self._settings.targets)
        return row_object(
            self._run(self._storage.outbox.retry_by_hand(row.id, hold=hold, now_ms=now_ms())), self._prices
        )

    def cancel(self, row_id: str) -> Row:
        row = self._escalation(row_id)
        return row_object(self._run(self._storage.outbox.cancel(row.id, now_ms=now_ms())), self._prices)

    def edit(self, row_id: str, text: str | None, messages: Sequence[Row] | None) -> Row:
        row = self._escalation(row_id)
        if messages is not None:
            told = parse_messages(Fields({"messages": list(messages)}), self._settings.server.max_messages)
        else:
            told = with_last_text(self._record(row.request_id), text or "")
        return row_object(self._run(self._storage.outbox.edit(row.id, told)), self._prices)

    def messages(self, row_id: str) -> list[Row]:
        return messages_object(self._record(self._escalation(row_id).request_id))

    def unfetched(self) -> int:
        return self._run(self._storage.outbox.unfetched())

    def purge(self, *, unfetched: bool) -> int:
        return self._run(self._storage.outbox.purge(now_ms=now_ms(), unfetched=unfetched))

    def erase(self, subject: str, *, dry_run: bool) -> Row:
        subjects = self._storage.subjects
        done = self._run(subjects.count(subject) if dry_run else subjects.erase(subject, now_ms=now_ms()))
        return erased_object(done, dry_run=dry_run)

    def drain(self) -> None:
        from agent.cli.escalating import drain

        self._run(drain(self._storage, self._settings))

    def requests(self, state: str | None, limit: int) -> list[Row]:
        wanted = RequestState(state) if state else None
        return [record_object(record) for record in self._run(self._storage.journal.list(wanted, limit=limit))]

    def request(self, request_id: str) -> Row:
        return record_object(self._record(request_id, fetched=True))

    def egress(self, since_ms: int, limit: int) -> Row:
        log = self._storage.egress_log
        return {
            "data": msgspec.to_builtins(self._run(log.list(since_ms, limit))),
            "totals": msgspec.to_builtins(self._run(log.totals(since_ms))),
        }

    def egress_page(self, after_id: int) -> list[Row]:
        found: list[Row] = msgspec.to_builtins(self._run(self._storage.egress_log.page(after_id)))
        return found

    def verify_egress(self) -> Row:
        log = self._storage.egress_log
        bad_id, head = self._run(log.verify()), self._run(log.head())
        return {"whole": bad_id is None, "first_bad_id": bad_id, "head": msgspec.to_builtins(head)}

    def standings(self) -> list[Row]:
        found = self._run(self._storage.outbox.standings(self._settings.budgets, now_ms()))
        return [standing_object(one) for one in found]

    def _escalation(self, row_id: str) -> Escalation:
        found = self._run(self._storage.outbox.get(row_id))
        if found is None:
            raise NotFound(f"there is no row {row_id} in the queue; `outrider queue list` shows them")
        return found

    def _record(self, request_id: str, *, fetched: bool = False) -> RequestRecord:
        found = self._run(self._storage.journal.get(request_id, now_ms=now_ms(), fetched=fetched))
        if found is None:
            raise NotFound(f"there is no request {request_id}; `outrider requests list` shows them")
        return found
