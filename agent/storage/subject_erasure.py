"""Erasing what is kept of one person: found by its tag, removed a chunk at a time, gone from the log after that.

What was sent stays told in the log of what left, and in the costs: moments, targets, sizes, hashes and ids, no
text. Both are what a person asks for who wants to know where the text went, and the log is chained.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from agent.storage import costs, feedback_statements, file_lines
from agent.storage import statements as sql
from agent.storage.batch_store import BatchBody
from agent.storage.changes import Changes
from agent.storage.connection import Connection
from agent.storage.database import Database
from agent.storage.outbox import Outbox
from agent.storage.retention import CHUNK_ROWS, DROPPED_ROWS, chunk
from agent.storage.subjects import KEEP_ERASURES_MS, input_of, secret_of, tag_of
from agent.storage.transitions import finish_attempt
from agent.telemetry import LOG

_OF_REQUESTS = "FROM subject_tags t JOIN {table} r ON r.{column} = t.owner WHERE t.tag = :tag AND t.kind = 'request'"
_COUNTS = {
    name: f"SELECT count(DISTINCT {distinct}) AS n {_OF_REQUESTS.format(table=table, column=column)}{more}"
    for name, distinct, table, column, more in (
        ("requests", "r.id", "requests", "id", ""),
        ("running", "r.id", "requests", "id", " AND r.state = 'running'"),
        ("answers", "r.request_id || r.source", "results", "request_id", " AND r.body IS NOT NULL"),
        ("escalations", "r.id", "escalations", "request_id", ""),
        ("in_flight", "r.id", "escalations", "request_id", " AND r.state = 'leased'"),
        ("edits", "r.id", "escalations", "request_id", " AND r.edited IS NOT NULL"),
        ("feedback", "r.id", "feedback", "request_id", ""),
    )
}
_COUNTS |= {
    "attempts": (
        "SELECT count(*) AS n FROM attempts WHERE escalation_id IN (SELECT id FROM escalations WHERE request_id IN"
        " (SELECT owner FROM subject_tags WHERE tag = :tag AND kind = 'request'))"
    ),
    "webhook_events": (
        "SELECT count(*) AS n FROM webhook_events WHERE subject_id IN"
        " (SELECT 'resp_' || owner FROM subject_tags WHERE tag = :tag AND kind = 'request')"
    ),
    "batch_lines": "SELECT count(DISTINCT owner) AS n FROM subject_tags WHERE tag = :tag AND kind = 'line'",
    "examples": "SELECT count(*) AS n FROM subject_tags WHERE tag = :tag AND kind = 'example'",
}
_RUNNING = f"SELECT DISTINCT r.id {_OF_REQUESTS.format(table='requests', column='id')} AND r.state = 'running'"
_REQUESTS = """
SELECT t.owner AS id, ifnull(length(r.body), 0)
    + (SELECT ifnull(sum(length(body)), 0) FROM results WHERE request_id = t.owner) AS bytes
FROM subject_tags t LEFT JOIN requests r ON r.id = t.owner
WHERE t.tag = :tag AND t.kind = 'request' GROUP BY t.owner LIMIT :limit
"""
_LINES = """
SELECT t.owner AS id, ifnull(length(l.body), 0) + ifnull(length(l.answer), 0) AS bytes
FROM subject_tags t LEFT JOIN batch_lines l
    ON l.batch_id = substr(t.owner, 1, instr(t.owner, ':') - 1)
    AND l.number = CAST(substr(t.owner, instr(t.owner, ':') + 1) AS INTEGER)
WHERE t.tag = :tag AND t.kind = 'line' GROUP BY t.owner LIMIT :limit
"""
_UNTAG = "DELETE FROM subject_tags WHERE kind = :kind AND owner = :id"
_FEEDBACK_DELETE = "DELETE FROM feedback WHERE request_id = :id"
_EVENTS_DELETE = "DELETE FROM webhook_events WHERE subject_id = 'resp_' || :id"
# The number of the line and that it was told stay, for the batch's counts; its id is the caller's own word.
_LINE_FORGET = """
UPDATE batch_lines SET body = NULL, answer = x'', status = ifnull(status, 0), custom_id = '', request_id = NULL
WHERE batch_id = :batch_id AND number = :number
"""
_LINE_OPEN = "SELECT 1 FROM batch_lines WHERE batch_id = :batch_id AND number = :number AND status IS NULL"
_LINE_FAILED = "UPDATE batches SET failed = failed + 1 WHERE id = :batch_id"
_OUTPUT_BYTES = """
UPDATE files SET bytes = (
    SELECT ifnull(sum(length(answer) + 1), 0) FROM batch_lines WHERE batch_id = files.batch_id AND answer <> x''
        AND (status BETWEEN 200 AND 299) = (files.id LIKE '%-output'))
WHERE batch_id = :batch_id
"""
_EXAMPLES = "SELECT DISTINCT owner FROM subject_tags WHERE tag = :tag AND kind = 'example'"
_EXAMPLE_INPUTS = "SELECT input FROM subject_tags WHERE tag = :tag AND kind = 'example' AND owner = :owner"
_EXAMPLES_UNTAG = """
DELETE FROM subject_tags WHERE kind = 'example' AND owner = :owner
    AND input IN (SELECT input FROM subject_tags WHERE tag = :tag AND kind = 'example' AND owner = :owner)
"""
_APPRAISER = "SELECT body FROM task_appraisers WHERE task = :task"
_BATCHES = "SELECT id, body FROM batches"
_BATCH_BODY = "UPDATE batches SET body = :body WHERE id = :id"
_BATCH_TAG = """
INSERT OR IGNORE INTO subject_tags (tag, kind, owner, input)
SELECT :tag, 'line', batch_id || ':' || number, x'' FROM batch_lines WHERE batch_id = :id
"""
_ERASURE = """
INSERT INTO erasures (tag, at_ms) VALUES (:tag, :now_ms) ON CONFLICT (tag) DO UPDATE SET at_ms = excluded.at_ms
"""
# A clock that was set back must not have later requests refused.
_ERASURES_DROP = "DELETE FROM erasures WHERE at_ms <= :before_ms OR at_ms > :now_ms"


class Erased(msgspec.Struct, frozen=True, kw_only=True):
    """What there is of a person, or was, by kind."""

    requests: int = 0
    running: int = 0  # of them: their answers are not kept
    answers: int = 0
    escalations: int = 0
    in_flight: int = 0  # of them, at a target: the answer is not taken
    edits: int = 0  # of them, by a person
    attempts: int = 0
    feedback: int = 0
    webhook_events: int = 0
    batch_lines: int = 0
    file_lines: int = 0
    examples: int = 0
    tasks: tuple[str, ...] = ()  # that had such examples
    untaught: tuple[str, ...] = ()  # of them: they showed one to the model, and must be taught again


class SubjectErasure:
    """Finds and erases what is kept of a person in one database."""

    def __init__(self, database: Database, changes: Changes, outbox: Outbox) -> None:
        self._db = database
        self._changes = changes
        self._outbox = outbox

    async def count(self, subject: str) -> Erased:
        """Return what there is, and change nothing."""
        tag = await self._tag(subject)
        lines = [len(await self._spans(file_id, subject)) for file_id in await file_lines.files(self._db)]

        def work(connection: Connection) -> Erased:
            found = {
                name: int(connection.execute(statement, {"tag": tag}).fetchone()["n"])
                for name, statement in _COUNTS.items()
            }
            owners = [row["owner"] for row in connection.execute(_EXAMPLES, {"tag": tag})]
            return msgspec.structs.replace(Erased(file_lines=sum(lines), tasks=_tasks(owners)), **found)

        return await self._db.read(work)

    async def running(self, subject: str) -> Sequence[str]:
        """Return the requests that are under way."""
        tag = await self._tag(subject)
        found = await self._db.read(lambda connection: connection.execute(_RUNNING, {"tag": tag}).fetchall())
        return [row["id"] for row in found]

    async def erase(self, subject: str, *, now_ms: int) -> Erased:
        """Erase it and return what there was. The same call again finishes one that was cut short.

        No batch may run meanwhile. A request under way ends in an error, and what comes of it is not kept.
        """
        tag = await self._tag(subject)
        whole = await self._db.write(partial(_begin, tag=tag, subject=subject, now_ms=now_ms))
        found = await self.count(subject)
        for file_id in await file_lines.files(self._db):
            everything = file_id in whole
            spans = await self._spans(file_id, None if everything else subject)
            await file_lines.blank(self._db, file_id, spans)
        untaught = await self._db.write(partial(_examples, tag=tag, now_ms=now_ms))
        while gone := await self._db.write(partial(self._some_requests, tag=tag, now_ms=now_ms)):
            self._changes.publish(*gone)
        while await self._db.write(partial(_some_lines, tag=tag)):
            pass
        await self._db.checkpoint()
        LOG.info(
            "what was kept of one person is erased: %d requests, %d escalations", found.requests, found.escalations
        )
        return msgspec.structs.replace(found, untaught=untaught)

    async def maintain(self, now_ms: int) -> None:
        """Forget erasures that no request can have begun before."""
        values = {"before_ms": now_ms - KEEP_ERASURES_MS, "now_ms": now_ms}
        await self._db.write(lambda connection: connection.execute(_ERASURES_DROP, values).rowcount)

    async def _tag(self, subject: str) -> bytes:
        return tag_of(await self._db.read(secret_of), subject)

    async def _spans(self, file_id: str, subject: str | None) -> list[file_lines.Span]:
        def wanted(raw: bytes) -> bool:
            return subject is None or file_lines.is_of(raw, subject)

        return await file_lines.spans(self._db, file_id, wanted)

    def _some_requests(self, connection: Connection, tag: bytes, now_ms: int) -> list[str]:
        found = chunk(connection.execute(_REQUESTS, {"tag": tag, "limit": DROPPED_ROWS}).fetchall())
        for request_id in found:
            row = connection.execute(sql.ESCALATION_OF_REQUEST, {"id": request_id}).fetchone()
            why = "its person was erased while it was sent"
            if row is not None and finish_attempt(connection, row, "unknown", why, left=None, now_ms=now_ms):
                costs.spend(connection, row, "unknown", None, self._outbox.charging, now_ms)
            for statement in (_EVENTS_DELETE, _FEEDBACK_DELETE, sql.REQUEST_DELETE):
                connection.execute(statement, {"id": request_id})
            connection.execute(_UNTAG, {"kind": "request", "id": request_id})
        return found


def _begin(connection: Connection, tag: bytes, subject: str, now_ms: int) -> set[str]:
    """Note the erasure, and tag the lines of batches that are this person's as a whole. Returns their input files."""
    connection.execute(_ERASURE, {"tag": tag, "now_ms": now_ms})
    files = set()
    for row in connection.execute(_BATCHES).fetchall():
        body = msgspec.json.decode(row["body"], type=BatchBody)
        if (body.metadata or {}).get("subject") == subject:
            files.add(body.input_file_id)
            bare = msgspec.structs.replace(body, metadata=None)
            connection.execute(_BATCH_BODY, {"id": row["id"], "body": msgspec.json.encode(bare)})
            connection.execute(_BATCH_TAG, {"id": row["id"], "tag": tag})
    return files


def _some_lines(connection: Connection, tag: bytes) -> list[str]:
    found = chunk(connection.execute(_LINES, {"tag": tag, "limit": CHUNK_ROWS}).fetchall())
    batches = set()
    for owner in found:
        batch_id, _, number = owner.rpartition(":")
        values = {"batch_id": batch_id, "number": int(number)}
        if connection.execute(_LINE_OPEN, values).fetchone() is not None:
            connection.execute(_LINE_FAILED, {"batch_id": batch_id})
        connection.execute(_LINE_FORGET, values)
        connection.execute(_UNTAG, {"kind": "line", "id": owner})
        batches.add(batch_id)
    for batch_id in batches:
        connection.execute(_OUTPUT_BYTES, {"batch_id": batch_id})
    return found


def _examples(connection: Connection, tag: bytes, now_ms: int) -> tuple[str, ...]:
    """Remove the examples of tasks that were made of this person's texts. Returns the tasks that showed one."""
    secret = secret_of(connection)
    untaught = []
    for row in connection.execute(_EXAMPLES, {"tag": tag}).fetchall():
        task, _, use = row["owner"].rpartition(":")
        tagged = connection.execute(_EXAMPLE_INPUTS, {"tag": tag, "owner": row["owner"]}).fetchall()
        inputs = {bytes(one["input"]) for one in tagged}
        stored = connection.execute(sql.EXAMPLES, {"task": task, "use": use}).fetchone()
        examples: list[list[Any]] = msgspec.msgpack.decode(stored["body"]) if stored else []
        theirs = [one for one in examples if input_of(secret, one[0]) in inputs]
        kept = [one for one in examples if one not in theirs]
        values = {"task": task, "use": use, "now_ms": now_ms}
        if kept:
            connection.execute(sql.EXAMPLES_PUT, {**values, "body": msgspec.msgpack.encode(kept)})
        else:
            connection.execute(sql.EXAMPLES_DROP, values)
        if _shows(connection, task, theirs):
            untaught.append(task)
            for statement in (sql.APPRAISER_DELETE, sql.MEANS_DELETE, feedback_statements.MONITOR_DELETE):
                connection.execute(statement, {"task": task})
            connection.execute(sql.CALIBRATION_END, values)
        connection.execute(_EXAMPLES_UNTAG, {"tag": tag, "owner": row["owner"]})
    return tuple(dict.fromkeys(untaught))


def _shows(connection: Connection, task: str, examples: Sequence[list[Any]]) -> bool:
    """Whether what a task was taught holds the text of one of these: its demonstrations do, as they are."""
    row = connection.execute(_APPRAISER, {"task": task}).fetchone()
    return row is not None and any(one[0].encode() in row["body"] for one in examples)


def _tasks(owners: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted({owner.rpartition(":")[0] for owner in owners}))
