"""``/v1/responses``: answers as the Responses API has them, at once or in the background.

A response is a request under another id: also one that came by ``/v1/chat/completions`` is found here as
``resp_`` and its request id, so that its late answer can be asked for as every client of that API asks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, cast

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from agent.api.answer import headers_of
from agent.api.answering import answer_stream, make_call, run_one
from agent.api.auth import CallerKey
from agent.api.call import Call
from agent.api.deps import ApiDeps, deps_of, key_of
from agent.api.fields import Fields
from agent.api.response_answer import response_object, stand_of
from agent.api.response_items import messages_of
from agent.api.response_request import INCLUDABLE, PREFIX, parse_response
from agent.api.response_stream import ResponseShape
from agent.api.sse import EventStream, EventWriter, while_connected
from agent.api.wire import json_response, query, read_json
from agent.errors import BodyGone, InvalidRequest, NotFound, ShuttingDown, WrongState
from agent.records import RequestRecord, RequestState
from agent.storage.retention import LATE
from agent.types import EgressPolicy, InferenceRequest, Message, RequestKind, RouteMode

MOST_LISTED = 100
_UNDER_WAY = {RequestState.RUNNING, RequestState.QUEUED}


async def create(request: Request) -> Response | ASGIApp:
    """``POST /v1/responses``."""
    deps = deps_of(request)
    body = await read_json(request, deps.settings.server.max_body_bytes)
    call = await call_of(deps, body, request.headers, key=key_of(request))
    if call.request.background:
        record = await deps.background.submit(call.request)
        if call.stream:
            return _follow(deps, record)
        shown = response_object(record)
        if not (record.state is RequestState.RUNNING and record.id == call.request.id):
            return json_response(shown)
        return json_response({**shown, "status": "queued"}, headers=_location(record))
    if call.stream:
        shape = ResponseShape(call)
        return answer_stream(deps, call, shape, shape.fault)
    given = await while_connected(request.receive, run_one(deps, call.request))
    headers = headers_of(given) | _location(given.record)
    return json_response(response_object(given.record), headers=headers)


async def call_of(deps: ApiDeps, body: Mapping[str, Any], headers: Headers, *, key: CallerKey | None) -> Call:
    """Return the call of a body, with the turns before it. Raises as the parser does, and for a response that is not there."""
    before, egress = await _turns_before(deps, body.get("previous_response_id"))
    return make_call(deps, body, headers, partial(parse_response, before=before, egress=egress), key=key)


async def show(request: Request) -> Response | ASGIApp:
    """``GET /v1/responses/{id}``: where a response stands; with ``stream=true`` its events until it ends."""
    asked = query(
        request, texts=("stream", "include", "include[]", "include_obfuscation"), integers=("starting_after",)
    )
    _check_include(asked)
    deps = deps_of(request)
    record = await _record(deps, request)
    if asked.text("stream", 8) == "true":
        return _follow(deps, record, asked.integer("starting_after", 0, 1 << 40))
    _request_of(record)
    await _fetched(deps, record)
    return json_response(response_object(record))


async def cancel(request: Request) -> Response:
    """``POST /v1/responses/{id}/cancel``: a response under way ends; one that has ended stays as it is."""
    deps = deps_of(request)
    record = await _record(deps, request)
    await _end(deps, record)
    return json_response(response_object(await _record(deps, request)))


async def delete(request: Request) -> Response:
    """``DELETE /v1/responses/{id}``: its texts are gone; one under way is cancelled first."""
    deps = deps_of(request)
    record = await _record(deps, request)
    await _end(deps, record)
    if record.escalation is not None and record.escalation.purpose == "quality_sample":
        await _cancel_row(deps, record.id)  # what left of it is in the log of that, before its row goes
    await deps.storage.journal.delete(record.id)
    await deps.storage.db.checkpoint()
    return json_response({"id": PREFIX + record.id, "object": "response", "deleted": True})


async def input_items(request: Request) -> Response:
    """``GET /v1/responses/{id}/input_items``: what the call brought, the last first unless ``order=asc``."""
    asked = query(request, texts=("after", "order", "include", "include[]"), integers=("limit",))
    _check_include(asked)
    limit = asked.integer("limit", 1, MOST_LISTED) or 20
    order, after = asked.text("order", 8) or "desc", asked.text("after", 256)
    if order not in {"asc", "desc"}:
        raise asked.wrong_value("order", "must be asc or desc")
    record = await _record(deps_of(request), request)
    if record.request is None:
        raise BodyGone(f"the texts of response {PREFIX}{record.id} are gone, their retention has passed")
    items = [_shown_item(record.id, index, item) for index, item in enumerate(_items(record.request))]
    if order == "desc":
        items.reverse()
    if after is not None:
        names = [item["id"] for item in items]
        if after not in names:
            raise asked.wrong_value("after", "is not the id of an item of this response")
        items = items[names.index(after) + 1 :]
    page = items[:limit]
    return json_response(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(items) > limit,
        }
    )


def _follow(deps: ApiDeps, record: RequestRecord, after: int | None = None) -> EventStream:
    """Stream where a response stands, until it ends. ``after`` leaves out the events up to that number.

    Its text comes in one piece: of what runs in the background no piece is kept.
    """
    shape = ResponseShape(Call((_request_of(record),), stream=True))

    async def produce(writer: EventWriter) -> None:
        async def tell(latest: RequestRecord) -> None:
            events = shape.standing(latest) if latest.state in _UNDER_WAY else shape.end(latest)
            for event in events:
                if after is None or event["sequence_number"] > after:
                    await writer.event(event)

        watch = cast("Any", deps.storage.journal.watch(record.id))  # an async generator: it can be closed
        try:
            async with deps.pipeline.holds.within(None), aclosing(watch) as records:
                async for latest in records:
                    await tell(latest)
                    await _fetched(deps, latest)
        except TimeoutError:
            raise ShuttingDown("the daemon is stopping; follow the response again when it runs") from None

    headers = {"x-outrider-request-id": record.id}
    return EventStream(produce, heartbeat_s=deps.heartbeat_s, headers=headers, fault=shape.fault)


async def _record(deps: ApiDeps, request: Request) -> RequestRecord:
    given: str = request.path_params["id"]
    record = await deps.storage.journal.get(given.removeprefix(PREFIX))
    if record is None or not _stored(record):
        raise NotFound(f"there is no response {given[:100]}", param="response_id")
    return record


def _stored(record: RequestRecord) -> bool:
    """Whether a response may be asked for later. One that waits for its late answer may be, whatever its caller said."""
    call = record.request.response if record.request else None
    return call is None or call.store or record.state is not RequestState.ANSWERED


async def _fetched(deps: ApiDeps, record: RequestRecord) -> None:
    if record.state in LATE:
        await deps.storage.journal.get(record.id, now_ms=deps.now_ms(), fetched=True)


async def _end(deps: ApiDeps, record: RequestRecord) -> None:
    """End what is under way, here and in the queue."""
    if record.state is RequestState.RUNNING and not await deps.background.cancel(record.id):
        latest = await deps.storage.journal.get(record.id)
        if latest is not None and latest.state is RequestState.RUNNING:
            raise WrongState("the response is being given to the one who asked for it: close that connection")
        record = latest or record
    if record.state is RequestState.QUEUED:
        await _cancel_row(deps, record.id)


async def _cancel_row(deps: ApiDeps, request_id: str) -> None:
    try:
        await deps.storage.outbox.cancel(request_id, now_ms=deps.now_ms())
    except WrongState:
        return  # it has just ended by itself


async def _turns_before(deps: ApiDeps, previous: object) -> tuple[tuple[Message, ...], EgressPolicy | None]:
    """Return the messages of the response that a call goes on from, its answer last, and the policy that they are under."""
    if previous is None or not isinstance(previous, str):
        return (), None  # of another type: the parser refuses it by name
    record = await deps.storage.journal.get(previous.removeprefix(PREFIX))
    if record is None or not _stored(record) or record.request is None:
        gone = record is not None and record.request is None
        why = "its texts are gone, their retention has passed" if gone else "there is none of that id"
        raise InvalidRequest(
            f"previous_response_id: {why}", param="previous_response_id", code="previous_response_not_found"
        )
    answer = stand_of(record).answer
    if answer.text is None and not answer.tool_calls:
        raise InvalidRequest(
            f"previous_response_id: that response is {record.state} and has no answer to go on from",
            param="previous_response_id",
            code="previous_response_unfinished",
        )
    said = Message(role="assistant", content=answer.text or "", tool_calls=answer.tool_calls)
    asked = record.request
    kept_here = asked.names_route and asked.route_mode is RouteMode.LOCAL_ONLY
    return (*_own_messages(asked), said), EgressPolicy.NEVER if kept_here else asked.egress


def _own_messages(request: InferenceRequest) -> tuple[Message, ...]:
    """Return the messages of a request without what its successor does not inherit: instructions, a task's prompt."""
    call = request.response
    if request.kind is RequestKind.CLASSIFY and call is not None:
        return messages_of(json.loads(call.input))
    told = request.task is not None or (call is not None and call.instructions is not None)
    messages = request.messages
    return messages[1:] if told and messages and messages[0].role == "system" else messages


def _items(request: InferenceRequest) -> list[dict[str, Any]]:
    if request.response is not None:
        found: list[dict[str, Any]] = json.loads(request.response.input)
        return found
    return [{"role": message.role, "content": message.content} for message in request.messages]


def _shown_item(request_id: str, index: int, item: Mapping[str, Any]) -> dict[str, Any]:
    """Return an input item with what the API adds: an id, its type, its parts."""
    shown = {"id": f"in_{request_id}_{index}", "type": "message", "status": "completed", **item}
    if shown["type"] == "message" and isinstance(shown.get("content"), str):
        kind = "output_text" if shown.get("role") == "assistant" else "input_text"
        shown["content"] = [{"type": kind, "text": shown["content"]}]
    return shown


def _request_of(record: RequestRecord) -> InferenceRequest:
    if record.request is None:
        raise BodyGone(f"the texts of response {PREFIX}{record.id} are gone, their retention has passed")
    return record.request


def _location(record: RequestRecord) -> dict[str, str]:
    return {"location": f"/v1/responses/{PREFIX}{record.id}"} if record.state in _UNDER_WAY else {}


def _check_include(asked: Fields) -> None:
    for name in ("include", "include[]"):
        value = asked.text(name, 256)
        if value is not None and any(one not in INCLUDABLE for one in value.split(",")):
            raise asked.wrong_value("include", f"may name {' and '.join(INCLUDABLE)}")


ROUTES = [
    Route("/v1/responses", create, methods=["POST"]),
    Route("/v1/responses/{id}", show, methods=["GET"]),
    Route("/v1/responses/{id}", delete, methods=["DELETE"]),
    Route("/v1/responses/{id}/cancel", cancel, methods=["POST"]),
    Route("/v1/responses/{id}/input_items", input_items, methods=["GET"]),
]
