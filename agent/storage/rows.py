"""Between rows and values. Bodies (what a user wrote or was told) are MessagePack, the rest JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from agent.records import Accepted, CloudAnswer, Escalation, EscalationState, RequestRecord, RequestState
from agent.storage import statements as sql
from agent.storage.connection import Connection
from agent.types import Confidence, Decision, EgressPolicy, Generation, Handoff, InferenceRequest, Message

LOCAL, TARGET = "local", "target"


def pack(value: msgspec.Struct) -> bytes:
    """Encode a body."""
    return msgspec.msgpack.encode(value)


def text(value: msgspec.Struct | None) -> str | None:
    """Encode what holds no text of a user."""
    return None if value is None else msgspec.json.encode(value).decode()


def unpack_request(body: bytes) -> InferenceRequest:
    """Decode a stored request."""
    return msgspec.msgpack.decode(body, type=InferenceRequest)


def accepted(row: Any) -> Accepted:
    """Return the route that a stored request came in under."""
    return Accepted(
        egress=EgressPolicy(row["accepted_egress"]),
        target=row["accepted_target"],
        target_fingerprint=row["accepted_fingerprint"],
    )


def escalation(row: Any) -> Escalation:
    """Return an outbox row as a value."""
    return Escalation(
        id=row["id"],
        request_id=row["request_id"],
        state=EscalationState(row["state"]),
        reason=row["reason"],
        target=row["target"],
        target_fingerprint=row["target_fingerprint"],
        released=bool(row["released"]),
        egress=EgressPolicy(row["egress"]),
        handoff=Handoff(row["handoff"]),
        priority=row["priority"],
        attempts=row["attempts"],
        max_attempts=row["max_attempts"],
        created_at_ms=row["created_at_ms"],
        available_at_ms=row["available_at_ms"],
        expires_at_ms=row["expires_at_ms"],
        lease=row["lease"],
        lease_expires_at_ms=row["lease_expires_at_ms"],
        last_error=row["last_error"],
        bytes=row["bytes"],
        task=row["task"],
        edited=row["edited"] is not None,
        estimated_input_tokens=row["estimated_input_tokens"],
        estimated_output_tokens=row["estimated_output_tokens"],
        purpose=row["purpose"],
    )


def record(row: Any, results: list[Any], outbox_row: Any | None) -> RequestRecord:
    """Join a request with its results and its outbox row. Bodies that are gone are None."""
    bodies = {result["source"]: result["body"] for result in results if result["body"] is not None}
    return RequestRecord(
        request=unpack_request(row["body"]) if row["body"] is not None else None,
        id=row["id"],
        state=RequestState(row["state"]),
        model=row["model"],
        received_at_ms=row["received_at_ms"],
        settled_at_ms=row["settled_at_ms"],
        generation=msgspec.msgpack.decode(bodies[LOCAL], type=Generation) if LOCAL in bodies else None,
        confidence=msgspec.json.decode(row["confidence"], type=Confidence) if row["confidence"] else None,
        decision=msgspec.json.decode(row["decision"], type=Decision) if row["decision"] else None,
        escalation=escalation(outbox_row) if outbox_row is not None else None,
        cloud_answer=msgspec.msgpack.decode(bodies[TARGET], type=CloudAnswer) if TARGET in bodies else None,
        answered_by=row["answered_by"],
        edited=_edited(outbox_row["edited"]) if outbox_row is not None and outbox_row["edited"] else (),
    )


def pack_messages(messages: Sequence[Message]) -> bytes:
    """Encode what a person put in place of a request's messages."""
    return msgspec.msgpack.encode(messages)


def _edited(body: bytes) -> tuple[Message, ...]:
    return msgspec.msgpack.decode(body, type=tuple[Message, ...])


def read_record(connection: Connection, request_id: str) -> RequestRecord | None:
    """Return a request as it stands, or None."""
    row = connection.execute(sql.REQUEST_GET, {"id": request_id}).fetchone()
    if row is None:
        return None
    results = connection.execute(sql.RESULTS_GET, {"id": request_id}).fetchall()
    outbox_row = connection.execute(sql.ESCALATION_OF_REQUEST, {"id": request_id}).fetchone()
    return record(row, results, outbox_row)
