"""``/v1/batches``: many requests in one file, answered in the background, each once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.api.auth import of_caller
from agent.api.batch_runner import ENDPOINTS, BatchRunner
from agent.api.deps import deps_of, key_of
from agent.api.envelope import EXTENSION_HEADERS, HOPS_HEADER, idempotency_key, take_metadata
from agent.api.fields import Fields
from agent.api.file_routes import list_object
from agent.api.wire import json_response, query, read_json
from agent.errors import InvalidRequest
from agent.identifiers import uuid7
from agent.storage.batch_store import Batch, BatchBody
from agent.storage.file_store import INPUT

MOST_LISTED = 100
LONGEST_WINDOW_H = 168
_WINDOW = re.compile(r"([0-9]{1,3})h")
_MOMENTS = {"completed": "completed_at", "failed": "failed_at", "expired": "expired_at", "cancelled": "cancelled_at"}


def batch_object(batch: Batch) -> dict[str, Any]:
    """Return a batch as the OpenAI API writes it."""
    moments: dict[str, int | None] = dict.fromkeys((*_MOMENTS.values(), "finalizing_at"))
    if batch.ended_at_ms is not None:
        moments[_MOMENTS[batch.status]] = batch.ended_at_ms // 1000
    errors = [msgspec.to_builtins(error) for error in batch.errors]
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.body.endpoint,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": batch.body.input_file_id,
        "completion_window": batch.body.completion_window,
        "status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": batch.created_at_ms // 1000,
        "in_progress_at": _seconds(batch.began_at_ms),
        "expires_at": batch.expires_at_ms // 1000,
        "cancelling_at": _seconds(batch.cancelling_at_ms),
        **moments,
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "metadata": batch.body.metadata,
    }


def _seconds(moment_ms: int | None) -> int | None:
    return None if moment_ms is None else moment_ms // 1000


def _runner(request: Request) -> BatchRunner:
    runner: BatchRunner = request.app.state.batches
    return runner


async def create(request: Request) -> Response:
    """``POST /v1/batches``."""
    deps = deps_of(request)
    given = await read_json(request, deps.settings.server.max_body_bytes)
    body, window_h = _parse(given, request.headers)
    caller = key_of(request)
    if caller is not None:
        body = msgspec.structs.replace(body, key=caller.name, key_egress=caller.egress)
    if (await deps.storage.files.get(body.input_file_id)).purpose != INPUT:
        raise InvalidRequest("input_file_id: its purpose is not batch", param="input_file_id", code="invalid_value")
    now_ms = deps.now_ms()
    batch = Batch(
        id=f"batch_{uuid7(now_ms)}",
        status="validating",
        body=body,
        created_at_ms=now_ms,
        expires_at_ms=now_ms + window_h * 3_600_000,
    )
    digest = hashlib.sha256(msgspec.json.encode(body, order="deterministic")).hexdigest()
    key = of_caller(caller, idempotency_key(request.headers))
    stored = await deps.storage.batches.create(batch, key=key, sha256=digest)
    _runner(request).begin(stored)
    return json_response(batch_object(stored))


def _parse(given: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[BatchBody, int]:
    fields = Fields(given)
    found: dict[str, str] = {}
    for name in ("input_file_id", "endpoint"):
        text = fields.text(name, 128)
        if not text:
            raise fields.missing(name)
        found[name] = text
    if found["endpoint"] not in ENDPOINTS:
        raise fields.wrong_value("endpoint", f"must be one of {', '.join(ENDPOINTS)}")
    window = fields.text("completion_window", 8) or "24h"
    hours = _WINDOW.fullmatch(window)
    if hours is None or not 1 <= int(hours[1]) <= LONGEST_WINDOW_H:
        raise fields.wrong_value("completion_window", f"must be 1h to {LONGEST_WINDOW_H}h")
    metadata = take_metadata(fields)
    fields.only("output_expires_after")
    fields.finish()
    known = {*EXTENSION_HEADERS.values(), HOPS_HEADER}
    for header in headers:
        if header.startswith("x-outrider-") and header not in known:
            raise InvalidRequest(f"unknown header {header[:100]}", param=header[:100], code="unknown_parameter")
    kept = {name: value for name, value in headers.items() if name in known}
    return BatchBody(
        input_file_id=found["input_file_id"],
        endpoint=found["endpoint"],
        completion_window=window,
        metadata=metadata or None,
        headers=kept,
    ), int(hours[1])


async def list_batches(request: Request) -> Response:
    """``GET /v1/batches``: newest first."""
    asked = query(request, texts=("after",), integers=("limit",))
    limit = asked.integer("limit", 1, MOST_LISTED) or 20
    found = await deps_of(request).storage.batches.list(after=asked.text("after", 128), limit=limit + 1)
    return json_response(list_object([batch_object(batch) for batch in found[:limit]], more=len(found) > limit))


async def show(request: Request) -> Response:
    """``GET /v1/batches/{id}``."""
    return json_response(batch_object(await deps_of(request).storage.batches.get(request.path_params["id"])))


async def cancel(request: Request) -> Response:
    """``POST /v1/batches/{id}/cancel``: lines without an answer get none; nothing of them leaves any more."""
    deps = deps_of(request)
    batch = await deps.storage.batches.cancel(request.path_params["id"], now_ms=deps.now_ms())
    _runner(request).wake(batch.id)
    return json_response(batch_object(batch))


ROUTES = [
    Route("/v1/batches", create, methods=["POST"]),
    Route("/v1/batches", list_batches, methods=["GET"]),
    Route("/v1/batches/{id}", show, methods=["GET"]),
    Route("/v1/batches/{id}/cancel", cancel, methods=["POST"]),
]
