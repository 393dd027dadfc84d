"""Named prefixes: how they stand in memory and on disk, and erasing what is saved of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.api.deps import deps_of, need_admin
from agent.api.fields import Fields
from agent.api.wire import check_media_type, json_response, parse_json, query, read_body
from agent.engine.prefix_keeper import PrefixStatus
from agent.errors import InvalidRequest, NotFound
from agent.records import StoredPrefix

MOST_BODY_BYTES = 1 << 20
MOST_NAMES = 10_000


def prefix_objects(statuses: Iterable[PrefixStatus], saved: Sequence[StoredPrefix]) -> list[dict[str, Any]]:
    """Return what is known of each named prefix; none of it is its text."""
    by_name = {one.name: one for one in saved}
    return [
        {
            "object": "outrider.prefix",
            **msgspec.to_builtins(status),
            "saved": _saved_object(by_name.get(status.name)),
        }
        for status in statuses
    ]


def _saved_object(saved: StoredPrefix | None) -> dict[str, Any] | None:
    if saved is None:
        return None
    return {
        "tokens": saved.tokens,
        "disk_bytes": saved.disk_bytes,
        "created_at_ms": saved.created_at_ms,
        "used_at_ms": saved.used_at_ms,
        "model_digest": saved.model_digest,
    }


async def _objects(request: Request) -> list[dict[str, Any]]:
    deps = deps_of(request)
    return prefix_objects(deps.engine.prefixes(), await deps.prefixes.all())


async def list_prefixes(request: Request) -> Response:
    """``GET /v1/prefixes``: in the order of the configuration."""
    query(request)
    return json_response({"object": "list", "data": await _objects(request)})


async def show_prefix(request: Request) -> Response:
    """``GET /v1/prefixes/{name}``."""
    query(request)
    name = request.path_params["name"]
    for one in await _objects(request):
        if one["name"] == name:
            return json_response(one)
    raise NotFound(f"there is no prefix {name[:100]} in the configuration", param="name")


async def purge(request: Request) -> Response:
    """``POST /v1/prefixes/purge`` with ``names`` or ``"all": true``: erase what is saved on disk.

    One that is still configured is computed and saved again by the next life of its worker.
    """
    need_admin(request)
    raw = await read_body(request, MOST_BODY_BYTES)
    if raw:
        check_media_type(request)
    fields = Fields(parse_json(raw) if raw else {})
    names = fields.array("names", MOST_NAMES)
    everything = fields.flag("all") or False
    fields.finish()
    if (names is None) != everything:
        raise InvalidRequest('name them in names, or say "all": true (not both)', param="names", code="invalid_value")
    if names is not None and not all(isinstance(name, str) for name in names):
        raise fields.wrong_type("names", "a list of strings")
    return json_response({"purged": await deps_of(request).prefixes.remove(names)})


ROUTES = [
    Route("/v1/prefixes", list_prefixes, methods=["GET"]),
    Route("/v1/prefixes/purge", purge, methods=["POST"]),
    Route("/v1/prefixes/{name}", show_prefix, methods=["GET"]),
]
