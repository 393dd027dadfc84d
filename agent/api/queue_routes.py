"""The outbox for whoever decides: what waits, the bytes as they would leave, and what left."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.api.deps import ApiDeps, deps_of, need_admin
from agent.api.fields import Fields
from agent.api.wire import check_media_type, json_response, parse_json, query, read_body
from agent.errors import InvalidRequest, NotFound
from agent.escalation.consent import under
from agent.escalation.prices import PriceBook
from agent.escalation.target import make_target
from agent.records import Escalation, EscalationState
from agent.settings import TargetSettings
from agent.storage.spending import Standing
from agent.types import EgressPolicy

MOST_LISTED = 1000
MOST_BODY_BYTES = 1 << 20
ENDED = (EscalationState.SUCCEEDED, EscalationState.DEAD, EscalationState.EXPIRED, EscalationState.CANCELLED)


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
    body = make_target(target, deps.settings.connectivity, deps.redaction(), now_ms=deps.now_ms).body(record, row)
    headers = {"x-outrider-target": target.name, "x-outrider-notice": "names are NOT removed"}
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
    """``GET /v1/egress``: what left the device, newest first, with totals. It holds no text."""
    asked = query(request, integers=("since_ms", "limit"))
    since_ms = asked.integer("since_ms", 0, 1 << 60) or 0
    limit = asked.integer("limit", 1, MOST_LISTED) or 100
    log = deps_of(request).storage.egress_log
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
    bad_id = await deps_of(request).storage.egress_log.verify()
    return json_response({"whole": bad_id is None, "first_bad_id": bad_id})


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
    Route("/v1/queue/{id}/cancel", cancel, methods=["POST"]),
    Route("/v1/budget", budget, methods=["GET"]),
    Route("/v1/egress", egress, methods=["GET"]),
    Route("/v1/egress/verify", verify_egress, methods=["GET"]),
]
