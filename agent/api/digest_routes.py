"""``/v1/digest``: what became of that which waited, as changes to read and not as two texts each."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.api.answer import draft_of
from agent.api.deps import ApiDeps, deps_of
from agent.api.fields import Fields
from agent.api.response_request import PREFIX
from agent.api.wire import json_response, query, read_json
from agent.records import RequestRecord, RequestState
from agent.revision import compare
from agent.storage.ceiling import DROPPED

MOST_LISTED = 200
MOST_SEEN = 1000
UNANSWERED = "unanswered"


async def digest(request: Request) -> Response:
    """``GET /v1/digest``: late answers that nobody has fetched, or, with ``since_ms``, all since then; oldest first."""
    asked = query(request, texts=("after",), integers=("since_ms", "limit"))
    since_ms = asked.integer("since_ms", 0, 1 << 60)
    limit = asked.integer("limit", 1, MOST_LISTED) or 50
    deps = deps_of(request)
    found = await deps.storage.journal.late(since_ms, asked.text("after", 64) or "", limit + 1)
    data = await asyncio.to_thread(lambda: [entry(record) for record in found[:limit]])
    counts: dict[str, int] = {}
    for one in data:
        counts[one["kind"]] = counts.get(one["kind"], 0) + 1
    return json_response(
        {
            "object": "outrider.digest",
            "outages": _outages(deps),
            "counts": counts,
            "data": data,
            "has_more": len(found) > limit,
        }
    )


def entry(record: RequestRecord) -> dict[str, Any]:
    """Return what became of one request that waited."""
    found: dict[str, Any] = {
        "request_id": record.id,
        "response_id": PREFIX + record.id,
        "state": record.state,
        "settled_at_ms": record.settled_at_ms,
        "question": _question(record),
    }
    if record.state is not RequestState.RESOLVED or record.cloud_answer is None:
        row = record.escalation
        dropped = row is not None and row.reason == DROPPED
        why = (row.last_error or row.reason) if row is not None else ""
        return {**found, "kind": DROPPED if dropped else UNANSWERED, "why": why}
    draft = draft_of(record)
    late = record.cloud_answer
    revision = compare(
        None if draft is None else _said(draft.text, draft.tool_calls), _said(late.text, late.tool_calls)
    )
    return {
        **found,
        "kind": revision.kind,
        "answered_by": record.answered_by,
        "similarity": round(revision.similarity, 3),
        "marked": revision.marked,
        "pieces": [[piece.op, piece.text] for piece in revision.pieces],
        "fields": msgspec.to_builtins(revision.fields),
    }


def _said(text: str | None, calls: tuple[Any, ...]) -> str:
    return "\n".join([*([text] if text else []), *(f"{call.name}({call.arguments})" for call in calls)])


def _question(record: RequestRecord) -> str:
    """Return the beginning of what was asked last."""
    asked = [message.content for message in record.request.messages if message.role == "user"] if record.request else []
    return " ".join(asked[-1].split())[:120] if asked else ""


def _outages(deps: ApiDeps) -> list[dict[str, Any]]:
    return [
        {"target": target.name, "from_ms": target.outage_from_ms, "until_ms": target.outage_until_ms}
        for target in deps.dispatcher.status()
        if target.outage_from_ms is not None
    ]


async def seen(request: Request) -> Response:
    """``POST /v1/digest/seen`` with ``ids``: their owner has them now, and their retention starts."""
    deps = deps_of(request)
    fields = Fields(await read_json(request, deps.settings.server.max_body_bytes))
    ids = fields.array("ids", MOST_SEEN)
    fields.finish()
    if ids is None:
        raise fields.missing("ids")
    if not all(isinstance(one, str) for one in ids):
        raise fields.wrong_type("ids", "a list of strings")
    now_ms = deps.now_ms()
    found = [await deps.storage.journal.get(one.removeprefix(PREFIX), now_ms=now_ms, fetched=True) for one in ids]
    return json_response({"seen": sum(record is not None for record in found)})


ROUTES = [
    Route("/v1/digest", digest, methods=["GET"]),
    Route("/v1/digest/seen", seen, methods=["POST"]),
]
