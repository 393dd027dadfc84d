"""Requests as they stand on disk: both answers, the decision with its trace, and every change."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any, cast

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from agent.api.deps import ApiDeps, deps_of
from agent.api.sse import EventStream, EventWriter
from agent.api.wire import json_response, query
from agent.errors import NotFound, ShuttingDown
from agent.records import RequestRecord, RequestState
from agent.storage.retention import LATE

MOST_LISTED = 1000


def record_object(record: RequestRecord) -> dict[str, Any]:
    """Return a record without what concerns nobody outside: single tokens and the row's lease."""
    generation, row = record.generation, record.escalation
    if generation is not None:
        generation = msgspec.structs.replace(generation, tokens=(), prompt_logprobs=())
    if row is not None:
        row = msgspec.structs.replace(row, lease=None, lease_expires_at_ms=None)
    shown = msgspec.structs.replace(record, generation=generation, escalation=row)
    return {"object": "outrider.request", **msgspec.to_builtins(shown)}


async def show_request(request: Request) -> Response:
    """``GET /v1/requests/{id}``. Who asks for a late answer has fetched it: its retention starts."""
    return json_response(record_object(await _fetch(deps_of(request), request.path_params["id"])))


async def _fetch(deps: ApiDeps, request_id: str) -> RequestRecord:
    record = await deps.storage.journal.get(request_id)
    if record is None:
        raise NotFound(f"there is no request {request_id[:100]}", param="id")
    if record.state in LATE:
        await deps.storage.journal.get(request_id, now_ms=deps.now_ms(), fetched=True)
    return record


async def list_requests(request: Request) -> Response:
    """``GET /v1/requests``: newest first, without texts."""
    asked = query(request, texts=("state", "before"), integers=("limit",))
    limit = asked.integer("limit", 1, MOST_LISTED) or 50
    found = await deps_of(request).storage.journal.list(
        asked.choice("state", RequestState), limit + 1, asked.text("before", 64)
    )
    data = [record_object(record) for record in found[:limit]]
    return json_response({"object": "list", "data": data, "has_more": len(found) > limit})


async def request_events(request: Request) -> ASGIApp:
    """``GET /v1/requests/{id}/events``: the record now, then after each change, until it is settled."""
    deps = deps_of(request)
    request_id = request.path_params["id"]

    async def produce(writer: EventWriter) -> None:
        watch = cast("Any", deps.storage.journal.watch(request_id))  # an async generator: it can be closed
        try:
            async with deps.pipeline.holds.within(None), aclosing(watch) as records:
                async for record in records:
                    await writer.event(record_object(record))
                    if record.state in LATE:
                        await deps.storage.journal.get(request_id, now_ms=deps.now_ms(), fetched=True)
        except TimeoutError:
            raise ShuttingDown("the daemon is stopping; follow the request again when it runs") from None

    return EventStream(produce, heartbeat_s=deps.heartbeat_s, headers={"x-outrider-request-id": request_id})


ROUTES = [
    Route("/v1/requests", list_requests, methods=["GET"]),
    Route("/v1/requests/{id}", show_request, methods=["GET"]),
    Route("/v1/requests/{id}/events", request_events, methods=["GET"]),
]
