"""``/v1/tasks``: the tasks, what was learned of them, and what `tasks teach` and `calibrate` ask of a daemon.

Teaching and calibrating are driven by whoever has the examples: it asks for ``signals`` of their
inputs, made by the very path that answers requests, fits, and hands the result in.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.api.deps import ApiDeps, deps_of, need_admin
from agent.api.monitor_object import monitor_object
from agent.api.wire import json_response, query, read_json
from agent.confidence.answer_features import VERSION as FEATURES_VERSION
from agent.confidence.appraisers import Appraiser
from agent.confidence.appraisers import check as check_appraiser
from agent.confidence.calibration import Calibration
from agent.confidence.heads import AppliedHead, Head
from agent.errors import ConfigError, InvalidRequest, NotFound, WrongState
from agent.tasks import TaskKind, TaskSpec, task_of

MOST_BODY_BYTES = 32 << 20  # of a head: 500 labels of 768 numbers, and what it was taught with


def task_object(deps: ApiDeps, name: str) -> dict[str, Any]:
    """Return what is known of a task; of one whose file does not hold, what is wrong."""
    book = deps.tasks.book
    try:
        spec = book.spec(name)
    except ConfigError as error:
        return {"object": "outrider.task", "name": name, "error": str(error)}
    head, calibration, means = book.stored_head(name), book.calibration(name), book.means(name)
    found: dict[str, Any] = {"object": "outrider.task", **msgspec.to_builtins(spec), "kind": spec.kind}
    found["digest"] = spec.digest
    found["head"] = None
    if head is not None:
        found["head"] = {
            "id": head.id,
            "current": head.task_digest == spec.digest,
            "feature": head.feature,
            "accuracy": head.accuracy,
            "taught": head.taught,
            "encoder": head.encoder,
            "model": head.model,
            "created_at_ms": head.created_at_ms,
            "compared": [
                {"feature": feature, "accuracy": accuracy, "log_loss": loss}
                for feature, accuracy, loss in head.compared
            ],
        }
    found["appraiser"] = appraiser_object(book.stored_appraiser(name), spec)
    found["calibration"] = None
    if calibration is not None:
        told = msgspec.to_builtins(calibration)
        told.pop("earlier")
        told.pop("reference")
        changed = changes(deps, spec, calibration)
        found["calibration"] = {**told, "current": not changed, "changed": changed}
    monitor = book.monitors.of(calibration)
    found["monitor"] = monitor_object(monitor, calibration) if monitor and calibration else None
    found["inputs_seen"] = means.inputs if means else 0
    return found


def appraiser_object(appraiser: Appraiser | None, spec: TaskSpec) -> dict[str, Any] | None:
    """Return what is told of an appraiser; never an example."""
    if appraiser is None:
        return None
    shown = appraiser.demonstrations
    return {
        "id": appraiser.id,
        "current": appraiser.task_digest == spec.digest,
        "taught": appraiser.taught,
        "right": appraiser.right,
        "auroc": appraiser.auroc,
        "log_loss": appraiser.log_loss,
        "figures": list(appraiser.answer.names),
        "demonstrations": shown.count if shown else 0,
        "samples": appraiser.samples,
        "fields": appraiser.fields is not None,
        "model": appraiser.model,
        "created_at_ms": appraiser.created_at_ms,
        "compared": [
            {"answered": answered, "right": right, "asked": asked} for answered, right, asked in appraiser.compared
        ],
    }


def changes(deps: ApiDeps, spec: TaskSpec, calibration: Calibration) -> list[str]:
    """Return what is known to differ from what was calibrated; each answer says it for itself."""
    key = calibration.key
    loaded = deps.engine.status().get(key.model)
    digests = [loaded.model_digest] if loaded else [card.sha256 for card in deps.models() if card.name == key.model]
    changed = [] if key.task_digest == spec.digest else ["labels, schema or prompt"]
    if any(digest and digest != key.model_digest for digest in digests):
        changed.append("model")
    return changed


async def list_tasks(request: Request) -> Response:
    """``GET /v1/tasks``."""
    query(request)
    deps = deps_of(request)
    return json_response(
        {"object": "list", "data": [task_object(deps, name) for name in deps.tasks.book.folder.names()]}
    )


async def show_task(request: Request) -> Response:
    """``GET /v1/tasks/{name}``."""
    query(request)
    deps = deps_of(request)
    name = request.path_params["name"]
    deps.tasks.book.spec(name)
    return json_response(task_object(deps, name))


async def create_task(request: Request) -> Response:
    """``POST /v1/tasks``: a task as its file would say it; the file is written."""
    need_admin(request)
    deps = deps_of(request)
    body = await read_json(request, deps.settings.server.max_body_bytes)
    spec = _spec_of(body)
    await asyncio.to_thread(deps.tasks.book.folder.put, spec)
    return json_response(task_object(deps, spec.name), 201)


def _spec_of(body: dict[str, Any]) -> TaskSpec:
    try:
        return task_of(body, "the task")
    except ConfigError as error:
        raise InvalidRequest(str(error), code="invalid_value") from error


async def delete_task(request: Request) -> Response:
    """``DELETE /v1/tasks/{name}``: its file, and what was learned of it."""
    need_admin(request)
    deps = deps_of(request)
    name = request.path_params["name"]
    await asyncio.to_thread(deps.tasks.book.folder.remove, name)
    await deps.tasks.forget(name)
    return json_response({"name": name, "deleted": True})


async def show_head(request: Request) -> Response:
    """``GET /v1/tasks/{name}/head``: the whole head, with its scores of the examples that taught it."""
    query(request)
    deps = deps_of(request)
    name = request.path_params["name"]
    deps.tasks.book.spec(name)
    head = deps.tasks.book.stored_head(name)
    if head is None:
        raise NotFound(f"task {name} was not taught: `outrider tasks teach {name} examples.jsonl`")
    return json_response(msgspec.to_builtins(head))


async def put_head(request: Request) -> Response:
    """``PUT /v1/tasks/{name}/head``: a taught head, of the task as it is now."""
    need_admin(request)
    deps = deps_of(request)
    spec = deps.tasks.book.spec(request.path_params["name"])
    head = decoded(await read_json(request, MOST_BODY_BYTES), Head)
    check_head(spec, head)
    await deps.tasks.teach(head)
    return json_response(task_object(deps, spec.name))


async def show_calibration(request: Request) -> Response:
    """``GET /v1/tasks/{name}/calibration``: all of it, as it is put."""
    query(request)
    deps = deps_of(request)
    name = request.path_params["name"]
    deps.tasks.book.spec(name)
    calibration = deps.tasks.book.calibration(name)
    if calibration is None:
        raise NotFound(f"task {name} is not calibrated: `outrider calibrate {name} examples.jsonl`")
    return json_response(msgspec.to_builtins(calibration))


async def show_appraiser(request: Request) -> Response:
    """``GET /v1/tasks/{name}/appraiser``: the whole appraiser, with the demonstrations that it keeps."""
    query(request)
    deps = deps_of(request)
    name = request.path_params["name"]
    deps.tasks.book.spec(name)
    found = deps.tasks.book.stored_appraiser(name)
    if found is None:
        raise NotFound(f"task {name} was not taught: `outrider tasks teach {name} examples.jsonl`")
    return json_response(msgspec.to_builtins(found))


async def put_appraiser(request: Request) -> Response:
    """``PUT /v1/tasks/{name}/appraiser``: a taught appraiser, of the task as it is now."""
    need_admin(request)
    deps = deps_of(request)
    spec = deps.tasks.book.spec(request.path_params["name"])
    found = decoded(await read_json(request, MOST_BODY_BYTES), Appraiser)
    if spec.kind is TaskKind.LABELS:
        raise InvalidRequest(f"task {spec.name} is of kind labels: it has a head", param="task")
    if (found.task, found.task_digest, found.version) != (spec.name, spec.digest, FEATURES_VERSION):
        raise WrongState(f"task {spec.name} has changed since this appraiser was taught: teach it again")
    try:
        check_appraiser(found)
    except ValueError as error:
        raise InvalidRequest(
            f"the appraiser cannot be applied: {error}", param="appraiser", code="invalid_value"
        ) from error
    await deps.tasks.teach_appraiser(found)
    return json_response(task_object(deps, spec.name))


async def put_calibration(request: Request) -> Response:
    """``PUT /v1/tasks/{name}/calibration``: a calibration, made with the task and the head as they are now."""
    need_admin(request)
    deps = deps_of(request)
    spec = deps.tasks.book.spec(request.path_params["name"])
    calibration = decoded(await read_json(request, MOST_BODY_BYTES), Calibration)
    head = deps.tasks.book.head(spec.name)
    appraiser = deps.tasks.book.appraiser(spec.name)
    check_calibration(spec, head.id if head else appraiser.id if appraiser else "", calibration)
    await deps.tasks.certify(calibration)
    return json_response(task_object(deps, spec.name))


def check_head(spec: TaskSpec, head: Head) -> None:
    """Raise InvalidRequest, or WrongState for a head of the task as it was."""
    if spec.kind is not TaskKind.LABELS:
        raise InvalidRequest(f"task {spec.name} is of kind {spec.kind}: only labels are taught", param="task")
    if (head.task, head.task_digest, head.labels) != (spec.name, spec.digest, spec.names):
        raise WrongState(f"task {spec.name} has changed since this head was taught: teach it again")
    try:
        AppliedHead(head)
    except ValueError as error:
        raise InvalidRequest(f"the head cannot be applied: {error}", param="head", code="invalid_value") from error


def check_calibration(spec: TaskSpec, taught_id: str, calibration: Calibration) -> None:
    """Raise InvalidRequest, or WrongState for one of the task as it was; ``taught_id``: of its head or appraiser, or ""."""
    if calibration.task != spec.name or calibration.key.task_digest != spec.digest:
        raise WrongState(f"the calibration is not of task {spec.name} as it is now: calibrate again")
    if calibration.key.estimator.partition(":")[2] != taught_id:
        raise WrongState(f"what task {spec.name} was taught is not what was calibrated: calibrate again")
    threshold = calibration.threshold
    if threshold is not None and not 0 <= threshold <= 1:
        raise InvalidRequest("the threshold is not in 0..1", param="threshold", code="invalid_value")


def decoded(body: dict[str, Any], kind: type[Any]) -> Any:
    """Return a body as a value of ours. Raises InvalidRequest."""
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the body does not hold: {error}", code="invalid_value") from error


ROUTES = [
    Route("/v1/tasks", list_tasks, methods=["GET"]),
    Route("/v1/tasks", create_task, methods=["POST"]),
    Route("/v1/tasks/{name}", show_task, methods=["GET"]),
    Route("/v1/tasks/{name}", delete_task, methods=["DELETE"]),
    Route("/v1/tasks/{name}/head", show_head, methods=["GET"]),
    Route("/v1/tasks/{name}/head", put_head, methods=["PUT"]),
    Route("/v1/tasks/{name}/calibration", show_calibration, methods=["GET"]),
    Route("/v1/tasks/{name}/appraiser", show_appraiser, methods=["GET"]),
    Route("/v1/tasks/{name}/appraiser", put_appraiser, methods=["PUT"]),
    Route("/v1/tasks/{name}/calibration", put_calibration, methods=["PUT"]),
]
