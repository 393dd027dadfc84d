"""What was done, what it cost, and how good it was."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.api.deps import ApiDeps, deps_of
from agent.api.fields import Fields
from agent.api.wire import json_response, query
from agent.errors import InvalidRequest
from agent.escalation.prices import PriceBook, dollars
from agent.report.book import plain
from agent.report.making import By, Wanted, make_report
from agent.storage.report_reader import Fact

LATEST_MS = (1 << 48) - 1
MOST_LISTED = 1000


def _span(asked: Fields, deps: ApiDeps) -> tuple[int, int]:
    since_ms = asked.integer("since_ms", 0, LATEST_MS) or 0
    until_ms = asked.integer("until_ms", 0, LATEST_MS)
    until_ms = deps.now_ms() + 1 if until_ms is None else until_ms
    if since_ms >= until_ms:
        raise InvalidRequest("since_ms is not before until_ms", param="since_ms", code="invalid_value")
    return since_ms, until_ms


async def show_report(request: Request) -> Response:
    """``GET /v1/report`` with ``since_ms``, ``until_ms`` (exclusive), ``by`` and ``task``."""
    deps = deps_of(request)
    asked = query(request, texts=("by", "task"), integers=("since_ms", "until_ms"))
    since_ms, until_ms = _span(asked, deps)
    wanted = Wanted(since_ms, until_ms, asked.choice("by", By), asked.text("task", 64))
    targets = deps.targets()
    found = await make_report(deps.storage.report, wanted, PriceBook(targets, deps.settings.prices), targets)
    return json_response({"object": "outrider.report", **msgspec.to_builtins(found)})


async def list_handled(request: Request) -> Response:
    """``GET /v1/report/requests``: which model handled each request, and what it cost; oldest first."""
    deps = deps_of(request)
    asked = query(request, texts=("after",), integers=("since_ms", "until_ms", "limit"))
    since_ms, until_ms = _span(asked, deps)
    limit = asked.integer("limit", 1, MOST_LISTED) or 100
    found = await deps.storage.report.page(since_ms, until_ms, limit + 1, asked.text("after", 64))
    data = [handled_object(fact) for fact in found[:limit]]
    return json_response({"object": "list", "data": data, "has_more": len(found) > limit})


def handled_object(fact: Fact) -> dict[str, Any]:
    """Return one request as a line of a report. ``cost_dollars`` null: some send cost nobody knows what."""
    by_target = fact.is_resolved
    return {
        "id": fact.id,
        "kind": fact.kind,
        "task": fact.task,
        "arm": fact.arm,
        "received_at_ms": fact.received_at_ms,
        "settled_at_ms": fact.settled_at_ms,
        "state": fact.state,
        "action": fact.action,
        "reason": fact.reason,
        "answered_by": fact.answered_by,
        "model": fact.target_model if by_target else fact.local_model,
        "local_model": fact.local_model,
        "input_tokens": fact.input_tokens,
        "output_tokens": fact.output_tokens,
        "tokens_estimated": fact.tokens_estimated,
        "sends": fact.sends,
        "cost_dollars": None if fact.unknown_sends else plain(dollars(fact.nanodollars)),
    }


ROUTES = [
    Route("/v1/report", show_report, methods=["GET"]),
    Route("/v1/report/requests", list_handled, methods=["GET"]),
]
