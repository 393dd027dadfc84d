"""What an alias stands for, changed under load: the new worker is ready before the first request goes to it.

What a task promises was calibrated with the model that answers it. A promotion that would end a promise is
refused, unless the caller brings calibrations with the new model, or says that it shall be so.
"""

from __future__ import annotations

import asyncio

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.api.deps import ApiDeps, deps_of, need_admin
from agent.api.fields import Fields
from agent.api.model_choice import WRITING, model_card
from agent.api.task_routes import changes, check_calibration, check_head, decoded
from agent.api.wire import json_response, query, read_json
from agent.confidence.calibration import Calibration
from agent.confidence.heads import Head
from agent.errors import ConfigError, InvalidRequest, NotCertified, WrongState
from agent.models.aliases import DEFAULT
from agent.tasks import TaskSpec

MOST_BODY_BYTES = 64 << 20
MOST_TASKS = 1000


class Renewal(msgspec.Struct, frozen=True):
    """What a task learned anew with the candidate."""

    calibration: Calibration
    head: Head | None = None  # None: as it is


async def list_aliases(request: Request) -> Response:
    """``GET /v1/aliases``."""
    query(request)
    known = await asyncio.to_thread(deps_of(request).aliases.all)
    return json_response({"object": "list", "data": [{"name": name, "model": model} for name, model in known.items()]})


async def promote(request: Request) -> Response:
    """``POST /v1/aliases/promote`` with ``model``, ``as``, ``tasks`` and ``force``: answers when requests go to the new model.

    ``tasks`` are calibrations with the new model, each with its head where that was taught anew.
    """
    need_admin(request)
    deps = deps_of(request)
    fields = Fields(await read_json(request, MOST_BODY_BYTES))
    alias = fields.text("as", 64) or DEFAULT
    model = fields.text("model", 256)
    force = fields.flag("force") or False
    renewals = [decoded(row, Renewal) for row in fields.array("tasks", MOST_TASKS) or []]
    fields.finish()
    if not model:
        raise fields.missing("model")
    if alias != DEFAULT and any(card.name == alias for card in deps.models()):
        raise InvalidRequest(f"{alias} is the name of a model", param="as")
    card = model_card(deps, model)
    if alias == DEFAULT and not {*card.tasks} & WRITING:
        raise InvalidRequest(f"{card.name} writes no text: {DEFAULT} is what answers chats", param="model")
    await deps.engine.make_ready(card.name)
    for renewal in renewals:
        _check(deps, renewal, card.name)
    served = {one.calibration.task for one in renewals if one.calibration.threshold is not None}
    ended = [spec.name for spec in promised(deps, alias) if spec.name not in served]
    if ended and card.name != deps.aliases.target(alias) and not force:
        raise NotCertified(
            f"nothing was changed: with {card.name} the promise of {', '.join(ended[:10])} would end. `outrider models "
            f"promote {card.name} --as {alias}` calibrates tasks on their stored examples first; force does it all the same"
        )
    before = await asyncio.to_thread(deps.aliases.promote, alias, card.name)
    for renewal in renewals:
        if renewal.head is not None:
            await deps.tasks.teach(renewal.head)
        await deps.tasks.certify(renewal.calibration)
    return await _switched(deps, alias, card.name, before)


def promised(deps: ApiDeps, alias: str) -> list[TaskSpec]:
    """Return the tasks whose answers are those of an alias and that promise something now."""
    found = []
    model = deps.aliases.target(alias)
    for spec in _tasks_of(deps, alias):
        calibration = deps.tasks.book.calibration(spec.name)
        if (
            calibration is not None
            and calibration.threshold is not None
            and calibration.key.model == model
            and not changes(deps, spec, calibration)
        ):
            found.append(spec)
    return found


def _tasks_of(deps: ApiDeps, alias: str) -> list[TaskSpec]:
    found = []
    for name in deps.tasks.book.folder.names():
        try:
            spec = deps.tasks.book.spec(name)
        except ConfigError:  # told at the start of the daemon, and by whoever asks for it
            continue
        if (spec.model or DEFAULT) == alias:
            found.append(spec)
    return found


def _check(deps: ApiDeps, renewal: Renewal, model: str) -> None:
    """Raise InvalidRequest, TaskNotFound, or WrongState for what is not of this task and this model."""
    calibration = renewal.calibration
    spec = deps.tasks.book.spec(calibration.task)
    now = deps.tasks.book.head(spec.name)
    if renewal.head is not None:
        check_head(spec, renewal.head)
    check_calibration(spec, renewal.head.id if renewal.head else now.id if now else "", calibration)
    if (calibration.key.model, calibration.key.model_digest) != (model, _digest(deps, model)):
        raise WrongState(f"the calibration of task {spec.name} was not made with {model} as it is loaded: begin again")


def _digest(deps: ApiDeps, model: str) -> str:
    loaded = deps.engine.status().get(model)
    return loaded.model_digest if loaded else model_card(deps, model).sha256


async def roll_back(request: Request) -> Response:
    """``POST /v1/aliases/rollback`` with ``as``: back to what it stood for before.

    A task whose last calibration with that model still fits promises that again; the answer names
    those that promise nothing now. Going back is never refused for that.
    """
    need_admin(request)
    deps = deps_of(request)
    fields = Fields(await read_json(request, MOST_BODY_BYTES))
    alias = fields.text("as", 64) or DEFAULT
    fields.finish()
    model = await asyncio.to_thread(deps.aliases.earlier, alias)
    await deps.engine.make_ready(model_card(deps, model).name)
    had = [spec for spec in _tasks_of(deps, alias) if deps.tasks.book.calibration(spec.name) is not None]
    ended = {spec.name for spec in promised(deps, alias)}
    before = await asyncio.to_thread(deps.aliases.roll_back, alias)
    digest = _digest(deps, model)
    renewed = [spec.name for spec in had if await deps.tasks.calibrate_again(spec.name, spec.digest, digest)]
    return await _switched(deps, alias, model, before, renewed=renewed, ended=sorted(ended - {*renewed}))


async def _switched(deps: ApiDeps, alias: str, model: str, before: str | None, **told: list[str]) -> Response:
    """Let the worker of the earlier model finish what it has, unless another alias needs it."""
    still = set((await asyncio.to_thread(deps.aliases.all)).values())
    if before and before not in still:
        deps.engine.retire(before)
    return json_response({"name": alias, "model": model, "before": before, **told})


ROUTES = [
    Route("/v1/aliases", list_aliases, methods=["GET"]),
    Route("/v1/aliases/promote", promote, methods=["POST"]),
    Route("/v1/aliases/rollback", roll_back, methods=["POST"]),
]
