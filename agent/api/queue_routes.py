"""The outbox for whoever decides: what waits, the bytes as they would leave, and what left."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.api.chat_request import parse_messages
from agent.api.deps import ApiDeps, deps_of, need_admin
from agent.api.fields import Fields
from agent.api.wire import check_media_type, json_response, parse_json, query, read_body
from agent.errors import BodyGone, InvalidRequest, NotFound, WrongState
from agent.escalation.consent import as_told, under
from agent.escalation.handoff import with_last_text
from agent.escalation.names import names_notice
from agent.escalation.prices import PriceBook
from agent.escalation.target import make_target
from agent.records import Escalation, EscalationState, RequestRecord
from agent.settings import TargetSettings
from agent.storage.spending import Standing
from agent.storage.transitions import ENDED
from agent.types import EgressPolicy

MOST_LISTED = 1000
MOST_BODY_BYTES = 1 << 20


def row_object(row: Escalation, prices: PriceBook) -> dict[str, Any]:
    """Return a row without its lease, which only its holder may know, with what it is expected to cost."""
    shown = msgspec.structs.replace(row, lease=None, lease_expires_at_ms=None)
    cost = prices.cost(row.target, row.estimated_input_tokens, row.estimated_output_tokens)
    known = cost is not None and row.estimated_input_tokens
    return {
        "object": "outrider.escalation",
        **msgspec.to_builtins(shown),
        "estimated_dollars": f"{cost:f}" if known else None,
    }


async def list_rows(request: Request) -> Response:
    """``GET /v1/queue``: oldest first, with the count of every state."""
    asked = query(request, texts=("state", "after"), integers=("limit",))
    limit = asked.integer("limit", 1, MOST_LISTED) or 50
    deps = deps_of(request)
    outbox = deps.storage.outbox
    found = await outbox.list(asked.choice("state", EscalationState), limit + 1, asked.text("after", 64))
    return json_response(
        {
            "object": "list",
            "data": [row_object(row, deps.dispatcher.budget.prices) for row in found[:limit]],
            "has_more": len(found) > limit,
            "counts": await outbox.counts(),
            "oldest_ms": await outbox.oldest_ms(),
            "unfetched": await outbox.unfetched(),
        }
    )


async def show_row(request: Request) -> Response:
    """``GET /v1/queue/{id}``; with ``as_sent=1`` exactly the bytes that would leave, and nothing else."""
    asked = query(request, texts=("target",), integers=("as_sent",))
    deps = deps_of(request)
    row = await _row(deps, request)
    if not asked.integer("as_sent", 0, 1):
        return json_response(row_object(row, deps.dispatcher.budget.prices))
    record = await deps.storage.journal.get(row.request_id)
    if record is None:
        raise NotFound(f"there is no request {row.request_id}", param="id")
    target = _target(deps, asked.text("target", 64) or row.target)
    redaction = deps.redaction()
    made = make_target(target, deps.settings.connectivity, redaction, now_ms=deps.now_ms, names=deps.dispatcher.names)
    body = (await asyncio.to_thread(made.outgoing, as_told(record, deps.dispatcher.told_now(record)), row)).body
    headers = {"x-outrider-target": target.name, "x-outrider-notice": names_notice(redaction.names)}
    return Response(body, media_type="application/json", headers=headers)


async def retry(request: Request) -> Response:
    """``POST /v1/queue/{id}/retry``: an ended row waits again."""
    deps = await _admin_without_body(request)
    row = await _row(deps, request)
    again = await deps.storage.outbox.retry_by_hand(row.id, hold=under(deps.targets()), now_ms=deps.now_ms())
    deps.dispatcher.wake()
    return json_response(row_object(again, deps.dispatcher.budget.prices))


async def cancel(request: Request) -> Response:
    """``POST /v1/queue/{id}/cancel``: nothing of an open row leaves any more."""
    deps = await _admin_without_body(request)
    row = await _row(deps, request)
    cancelled = await deps.storage.outbox.cancel(row.id, now_ms=deps.now_ms())
    return json_response(row_object(cancelled, deps.dispatcher.budget.prices))


async def release(request: Request) -> Response:
    """``POST /v1/queue/release`` with ``ids`` or ``"all": true``, and ``target``: a person lets rows leave."""
    need_admin(request)
    deps = deps_of(request)
    fields = await _body(request)
    ids = fields.array("ids", 100_000)
    everything = fields.flag("all") or False
    target = _target(deps, fields.text("target", 64))
    fields.finish()
    if (ids is None) != everything:
        raise InvalidRequest('name the rows in ids, or say "all": true (not both)', param="ids", code="invalid_value")
    if ids is not None and not all(isinstance(item, str) for item in ids):
        raise fields.wrong_type("ids", "a list of strings")
    released = await deps.storage.outbox.release(
        ids,
        target=target.name,
        fingerprint=target.fingerprint,
        configured={one.name for one in deps.targets()},
        now_ms=deps.now_ms(),
    )
    deps.dispatcher.wake()
    return json_response({"released": released, "target": target.name})


async def approve(request: Request) -> Response:
    """``POST /v1/queue/{id}/approve`` with ``target`` where there are several: a person lets one row leave."""
    need_admin(request)
    deps = deps_of(request)
    row = await _row(deps, request)
    fields = await _body(request)
    target = _target(deps, fields.text("target", 64) or _still_configured(deps, row.target))
    fields.finish()
    released = await deps.storage.outbox.release(
        [row.id],
        target=target.name,
        fingerprint=target.fingerprint,
        configured={one.name for one in deps.targets()},
        now_ms=deps.now_ms(),
    )
    if not released:
        raise WrongState(f"row {row.id} is {row.state}: it does not wait for a person")
    deps.dispatcher.wake()
    return json_response(row_object(await _row(deps, request), deps.dispatcher.budget.prices))


def _still_configured(deps: ApiDeps, name: str | None) -> str | None:
    return name if name in {one.name for one in deps.targets()} else None


async def edit(request: Request) -> Response:
    """``POST /v1/queue/{id}/edit``: other text in place of what would leave, while the row waits for a person.

    ``text`` stands for the last message of the user, ``messages`` for all of them. What leaves is
    pseudonymised and checked as ever; the draft does not go along.
    """
    need_admin(request)
    deps = deps_of(request)
    row = await _row(deps, request)
    fields = await _body(request)
    text = fields.text("text", MOST_BODY_BYTES)
    given = fields.take("messages")
    fields.finish()
    if (text is None) == (given is None):
        raise InvalidRequest("say text or messages (not both)", param="text", code="invalid_value")
    if text is None:
        messages = parse_messages(Fields({"messages": given}), deps.settings.server.max_messages)
    else:
        record = await deps.storage.journal.get(row.request_id)
        messages = with_last_text(record, text)
    edited = await deps.storage.outbox.edit(row.id, messages)
    return json_response(row_object(edited, deps.dispatcher.budget.prices))


async def messages(request: Request) -> Response:
    """``GET /v1/queue/{id}/messages``: the messages that would leave, before they are pseudonymised."""
    query(request)
    deps = deps_of(request)
    row = await _row(deps, request)
    record = await deps.storage.journal.get(row.request_id)
    if record is None:
        raise NotFound(f"there is no request {row.request_id}", param="id")
    return json_response({"object": "list", "data": messages_object(record)})


def messages_object(record: RequestRecord) -> list[dict[str, Any]]:
    """Return the messages that would leave as the API takes them; parts that are no text are left out."""
    if record.request is None:
        raise BodyGone(f"the texts of request {record.id} are gone, their retention has passed")
    shown = []
    for message in record.edited or record.request.messages:
        one: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.name is not None:
            one["name"] = message.name
        if message.tool_call_id is not None:
            one["tool_call_id"] = message.tool_call_id
        if message.tool_calls:
            one["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in message.tool_calls
            ]
        shown.append(one)
    return shown


async def purge(request: Request) -> Response:
    """``POST /v1/queue/purge``: delete ended rows and their texts; ``states`` narrows it.

    Late answers that nobody has fetched stay, unless ``"unfetched": true``.
    """
    need_admin(request)
    deps = deps_of(request)
    fields = await _body(request)
    names = fields.array("states", len(EscalationState))
    unfetched = fields.flag("unfetched") or False
    fields.finish()
    known = {state.value for state in ENDED}
    if names is not None and not all(isinstance(name, str) and name in known for name in names):
        raise fields.wrong_value("states", f"must name states that have ended: {', '.join(ENDED)}")
    states = ENDED if names is None else tuple(EscalationState(name) for name in names)
    purged = await deps.storage.outbox.purge(now_ms=deps.now_ms(), states=states, unfetched=unfetched)
    return json_response({"purged": purged})


async def drain(request: Request) -> Response:
    """``POST /v1/queue/drain``: try every target now; returns at once with the counts."""
    deps = await _admin_without_body(request)
    await deps.dispatcher.drain()
    return json_response({"counts": await deps.storage.outbox.counts()})


async def egress(request: Request) -> Response:
    """``GET /v1/egress``: what left the device, newest first, with totals. It holds no text.

    With ``after_id`` (0: from the first line on) oldest first, for whoever keeps a copy.
    """
    asked = query(request, integers=("since_ms", "limit", "after_id"))
    since_ms = asked.integer("since_ms", 0, 1 << 60) or 0
    limit = asked.integer("limit", 1, MOST_LISTED) or 100
    log = deps_of(request).storage.egress_log
    after_id = asked.integer("after_id", 0, 1 << 60)
    if after_id is not None:
        return json_response({"object": "list", "data": await log.page(after_id, limit), "head": await log.head()})
    return json_response(
        {"object": "list", "data": await log.list(since_ms, limit), "totals": await log.totals(since_ms)}
    )


async def budget(request: Request) -> Response:
    """``GET /v1/budget``: how far each ceiling is used up, sends under way included."""
    query(request)
    deps = deps_of(request)
    found = await deps.storage.outbox.standings(deps.dispatcher.budget.ceilings, deps.now_ms())
    return json_response({"object": "list", "data": [standing_object(one) for one in found]})


def standing_object(standing: Standing) -> dict[str, Any]:
    """Return one ceiling of a budget; amounts are decimal texts, so that none is rounded."""
    shown = msgspec.to_builtins(standing)
    return {**shown, "ceiling": f"{standing.ceiling:f}", "spent": f"{standing.spent:f}", "used_up": standing.used_up}


async def verify_egress(request: Request) -> Response:
    """``GET /v1/egress/verify``: whether the chained log is whole, else the first row that is not."""
    query(request)
    log = deps_of(request).storage.egress_log
    bad_id = await log.verify()
    return json_response({"whole": bad_id is None, "first_bad_id": bad_id, "head": await log.head()})


async def _row(deps: ApiDeps, request: Request) -> Escalation:
    some_id = request.path_params["id"]
    row = await deps.storage.outbox.get(some_id)
    if row is None:
        raise NotFound(f"there is no row {some_id[:100]} in the queue", param="id")
    return row


def _target(deps: ApiDeps, name: str | None) -> TargetSettings:
    """Return a configured target that may receive. Raises InvalidRequest with the choices."""
    able = [target for target in deps.targets() if target.egress is not EgressPolicy.NEVER]
    found = [target for target in able if name is None or target.name == name]
    if len(found) == 1:
        return found[0]
    names = ", ".join(target.name for target in able) or "none; add one with `outrider target add`"
    problem = "say which target" if name is None else f"target {name} is not configured to receive"
    raise InvalidRequest(f"{problem}: configured are {names}", param="target", code="unknown_target")


async def _body(request: Request) -> Fields:
    raw = await read_body(request, MOST_BODY_BYTES)
    if not raw:
        return Fields({})
    check_media_type(request)
    return Fields(parse_json(raw))


async def _admin_without_body(request: Request) -> ApiDeps:
    need_admin(request)
    (await _body(request)).finish()
    query(request)
    return deps_of(request)


ROUTES = [
    Route("/v1/queue", list_rows, methods=["GET"]),
    Route("/v1/queue/release", release, methods=["POST"]),
    Route("/v1/queue/purge", purge, methods=["POST"]),
    Route("/v1/queue/drain", drain, methods=["POST"]),
    Route("/v1/queue/{id}", show_row, methods=["GET"]),
    Route("/v1/queue/{id}/retry", retry, methods=["POST"]),
    Route("/v1/queue/{id}/approve", approve, methods=["POST"]),
    Route("/v1/queue/{id}/messages", messages, methods=["GET"]),
    Route("/v1/queue/{id}/edit", edit, methods=["POST"]),
    Route("/v1/queue/{id}/cancel", cancel, methods=["POST"]),
    Route("/v1/budget", budget, methods=["GET"]),
    Route("/v1/egress", egress, methods=["GET"]),
    Route("/v1/egress/verify", verify_egress, methods=["GET"]),
]
