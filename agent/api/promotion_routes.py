"""What an alias stands for, changed under load: the new worker is ready before the first request goes to it."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.api.deps import ApiDeps, deps_of, need_admin
from agent.api.fields import Fields
from agent.api.model_choice import model_card
from agent.api.wire import json_response, query, read_json
from agent.errors import InvalidRequest
from agent.models.aliases import DEFAULT

MOST_BODY_BYTES = 1 << 16


async def list_aliases(request: Request) -> Response:
    """``GET /v1/aliases``."""
    query(request)
    known = await asyncio.to_thread(deps_of(request).aliases.all)
    return json_response({"object": "list", "data": [{"name": name, "model": model} for name, model in known.items()]})


async def promote(request: Request) -> Response:
    """``POST /v1/aliases/promote`` with ``model`` and ``as``: answers when requests go to the new model."""
    need_admin(request)
    deps = deps_of(request)
    fields = Fields(await read_json(request, MOST_BODY_BYTES))
    alias = fields.text("as", 64) or DEFAULT
    model = fields.text("model", 256)
    fields.finish()
    if not model:
        raise fields.missing("model")
    if alias != DEFAULT and any(card.name == alias for card in deps.models()):
        raise InvalidRequest(f"{alias} is the name of a model", param="as")
    card = model_card(deps, model)
    await deps.engine.make_ready(card.name)
    before = await asyncio.to_thread(deps.aliases.promote, alias, card.name)
    return await _switched(deps, alias, card.name, before)


async def roll_back(request: Request) -> Response:
    """``POST /v1/aliases/rollback`` with ``as``: back to what it stood for before."""
    need_admin(request)
    deps = deps_of(request)
    fields = Fields(await read_json(request, MOST_BODY_BYTES))
    alias = fields.text("as", 64) or DEFAULT
    fields.finish()
    model = await asyncio.to_thread(deps.aliases.earlier, alias)
    await deps.engine.make_ready(model_card(deps, model).name)
    before = await asyncio.to_thread(deps.aliases.roll_back, alias)
    return await _switched(deps, alias, model, before)


async def _switched(deps: ApiDeps, alias: str, model: str, before: str | None) -> Response:
    """Let the worker of the earlier model finish what it has, unless another alias needs it."""
    still = set((await asyncio.to_thread(deps.aliases.all)).values())
    if before and before not in still:
        deps.engine.retire(before)
    return json_response({"name": alias, "model": model, "before": before})


ROUTES = [
    Route("/v1/aliases", list_aliases, methods=["GET"]),
    Route("/v1/aliases/promote", promote, methods=["POST"]),
    Route("/v1/aliases/rollback", roll_back, methods=["POST"]),
]
