"""What people and targets said of answers, as rows. Every method returns after the commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from agent.records import Feedback, FeedbackOrigin, Said, Verdict
from agent.storage import feedback_statements as sql
from agent.storage import rows
from agent.storage.connection import Connection
from agent.storage.database import Database

_Feedbacks = list[Feedback]  # inside the class, `list` is the method


class FeedbackStore:
    """The feedback of one database."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def put(self, feedback: Feedback) -> bool:
        """Store what was said; it takes the place of what the same origin said of this request before.

        Returns as ``put_feedback`` does.
        """
        return await self._db.write(lambda connection: put_feedback(connection, feedback), grows=True)

    async def list(self, task: str | None = None, *, limit: int = 1000, after_id: str = "") -> _Feedbacks:
        """Return feedback, oldest first; of one task where it is named. ``after_id`` goes on after an earlier page."""

        def work(connection: Connection) -> _Feedbacks:
            parameters: dict[str, Any] = {"after_id": after_id, "limit": limit}
            if task is None:
                return [_feedback(row) for row in connection.execute(sql.FEEDBACK_LIST, parameters).fetchall()]
            found = connection.execute(sql.FEEDBACK_OF_TASK, {**parameters, "task": task}).fetchall()
            return [_feedback(row) for row in found]

        return await self._db.read(work)

    async def of_request(self, request_id: str) -> Sequence[Feedback]:
        """Return what was said of one request."""

        def work(connection: Connection) -> _Feedbacks:
            found = connection.execute(sql.FEEDBACK_OF_REQUEST, {"id": request_id}).fetchall()
            return [_feedback(row) for row in found]

        return await self._db.read(work)

    async def counts(self, task: str | None) -> Sequence[dict[str, Any]]:
        """Return how often each origin said each verdict of a task, and of how many the local answer was right or wrong."""

        def work(connection: Connection) -> Sequence[dict[str, Any]]:
            found = connection.execute(sql.FEEDBACK_COUNTS, {"task": task}).fetchall()
            return [
                {
                    "origin": row["origin"],
                    "verdict": row["verdict"],
                    "rows": row["n_rows"],
                    "right": row["n_right"] or 0,
                    "wrong": row["n_wrong"] or 0,
                }
                for row in found
            ]

        return await self._db.read(work)


def put_feedback(connection: Connection, feedback: Feedback) -> bool:
    """Store one feedback inside a transaction.

    Returns whether it may be counted: of an answer that was drawn at random only the first word, whoever says it.
    """
    was_counted = connection.execute(sql.FEEDBACK_DRAWN, {"id": feedback.request_id}).fetchone() is not None
    connection.execute(
        sql.FEEDBACK_PUT,
        {
            "id": feedback.id,
            "request_id": feedback.request_id,
            "task": feedback.task,
            "origin": feedback.origin.value,
            "verdict": feedback.verdict.value,
            "is_right": feedback.right,
            "served": feedback.served,
            "propensity": feedback.propensity,
            "now_ms": feedback.created_at_ms,
            "body": rows.pack(feedback.said),
        },
    )
    return not was_counted


def _feedback(row: Any) -> Feedback:
    return Feedback(
        id=row["id"],
        request_id=row["request_id"],
        task=row["task"],
        origin=FeedbackOrigin(row["origin"]),
        verdict=Verdict(row["verdict"]),
        right=None if row["is_right"] is None else bool(row["is_right"]),
        served=bool(row["served"]),
        propensity=row["propensity"],
        created_at_ms=row["created_at_ms"],
        said=msgspec.msgpack.decode(row["body"], type=Said),
    )
