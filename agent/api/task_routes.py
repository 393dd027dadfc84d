"""``/v1/tasks``: the tasks, what was learned of them, and what `tasks teach` and `calibrate` ask of a daemon.

Teaching and calibrating are driven by whoever has the examples: it asks for ``signals`` of their
inputs, made by the very path that answers requests, fits, and hands the result in.
"""

from __future__ import annotations

import asyncio
import base64
from array import array
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.api.deps import ApiDeps, deps_of, need_admin
from agent.api.fields import Fields
from agent.api.model_choice import CLASSIFYING, WRITING, need_model
from agent.api.task_request import as_task
from agent.api.wire import json_response, query, read_json
from agent.confidence.calibration import Calibration, key_of
from agent.confidence.heads import AppliedHead, Head
from agent.errors import ConfigError, InvalidRequest, NotFound, WrongState
from agent.identifiers import uuid7
from agent.models.aliases import DEFAULT
from agent.pipeline import refusal
from agent.tasks import TaskKind, TaskSpec, task_of
from agent.types import InferenceRequest, Message, RequestKind

ENCODER = "minilm-l6-v2-int8"
MOST_INPUTS = 256  # in one call for signals
MOST_BODY_BYTES = 32 << 20  # of a head: 500 labels of 768 numbers, and what it was taught with


class Signal(StrEnum):
    """What is asked of the inputs."""

    EMBEDDING = "embedding"  # the vector of each, by the encoder
    SCORES = "scores"  # the log-probability of each label as the answer, by the task's model
    ANSWER = "answer"  # the local answer and how sure it is, before any calibration


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
    found["calibration"] = None
    if calibration is not None:
        told = msgspec.to_builtins(calibration)
        told.pop("earlier")
        changed = changes(deps, spec, calibration)
        found["calibration"] = {**told, "current": not changed, "changed": changed}
    found["inputs_seen"] = means.inputs if means else 0
    return found


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


async def signals(request: Request) -> Response:
    """``POST /v1/tasks/{name}/signals`` with ``inputs`` and ``signal``. Nothing of it is journaled or escalated."""
    deps = deps_of(request)
    spec = deps.tasks.book.spec(request.path_params["name"])
    fields = Fields(await read_json(request, deps.settings.server.max_body_bytes))
    signal = fields.choice("signal", Signal)
    inputs = fields.array("inputs", MOST_INPUTS)
    model = fields.text("model", 256)  # another one than the task's: what it would do with that
    fields.finish()
    if signal is None:
        raise fields.missing("signal")
    if not inputs:
        raise fields.missing("inputs")
    if not all(isinstance(one, str) and one.strip() for one in inputs):
        raise fields.wrong_type("inputs", "a list of texts that are not empty")
    if spec.kind is not TaskKind.LABELS and signal is not Signal.ANSWER:
        raise fields.wrong_value("signal", f'of a task of kind {spec.kind} is "answer"')
    if signal is Signal.EMBEDDING:
        return json_response(await _vectors(deps, inputs))
    requests = [_request(deps, spec, one, model) for one in inputs]
    if not deps.tasks.book.needs_no_model(requests[0]) or signal is Signal.SCORES:
        need_model(deps, requests[0].model, CLASSIFYING if spec.kind is TaskKind.LABELS else WRITING)
    places = asyncio.Semaphore(deps.settings.engine.parallel)

    async def one_at_its_place(one: InferenceRequest) -> dict[str, Any]:
        async with places:
            return await (_scores(deps, one) if signal is Signal.SCORES else _answer(deps, spec, one))

    tasks = [asyncio.create_task(one_at_its_place(one)) for one in requests]
    try:
        rows = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return json_response({"signal": signal, "task_digest": spec.digest, "rows": rows})


def _request(deps: ApiDeps, spec: TaskSpec, text: str, model: str | None) -> InferenceRequest:
    now_ms = deps.now_ms()
    kind = RequestKind.CLASSIFY if spec.kind is TaskKind.LABELS else RequestKind.CHAT
    asked = InferenceRequest(
        id=uuid7(now_ms),
        kind=kind,
        model=model or DEFAULT,
        messages=(Message("user", text),),
        received_at_ms=now_ms,
        deadline_at_ms=now_ms + int(deps.settings.server.request_timeout_s * 1000),
    )
    found = as_task(asked, spec, names_model=model is not None)
    return msgspec.structs.replace(found, model=deps.aliases.target(found.model))


async def _vectors(deps: ApiDeps, inputs: Sequence[str]) -> dict[str, Any]:
    deadline_at_ms = deps.now_ms() + int(deps.settings.server.request_timeout_s * 1000)
    told = await deps.engine.embed(ENCODER, inputs, deadline_at_ms=deadline_at_ms)
    if told.failure:
        raise refusal(told.failure)
    raw = b"".join(array("f", vector).tobytes() for vector in told.vectors)
    return {
        "signal": Signal.EMBEDDING,
        "model": told.model,
        "model_digest": told.model_digest,
        "runtime": told.runtime,
        "dimensions": len(told.vectors[0]),
        "vectors": base64.b64encode(raw).decode("ascii"),
    }


async def _scores(deps: ApiDeps, request: InferenceRequest) -> dict[str, Any]:
    told = await deps.engine.score(request, sorted(request.labels))
    if told.failure:
        raise refusal(told.failure)
    return {
        "model": told.model,
        "model_digest": told.model_digest,
        "runtime": told.runtime,
        "logprobs": told.logprobs,
        "trained": told.trained,
    }


async def _answer(deps: ApiDeps, spec: TaskSpec, request: InferenceRequest) -> dict[str, Any]:
    generation, confidence = await deps.pipeline.tried(request)
    if generation.failure:
        raise refusal(generation.failure)
    key = key_of(spec.digest, generation, confidence)
    return {
        "answer": generation.text,
        "tool_calls": [{"name": call.name, "arguments": call.arguments} for call in generation.tool_calls],
        "score": confidence.raw if confidence.score else confidence.score,
        "key": key,
    }


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


async def put_calibration(request: Request) -> Response:
    """``PUT /v1/tasks/{name}/calibration``: a calibration, made with the task and the head as they are now."""
    need_admin(request)
    deps = deps_of(request)
    spec = deps.tasks.book.spec(request.path_params["name"])
    calibration = decoded(await read_json(request, MOST_BODY_BYTES), Calibration)
    head = deps.tasks.book.head(spec.name)
    check_calibration(spec, head.id if head else "", calibration)
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


def check_calibration(spec: TaskSpec, head_id: str, calibration: Calibration) -> None:
    """Raise InvalidRequest, or WrongState for one of the task or the head as they were; ``head_id`` is "" for none."""
    if calibration.task != spec.name or calibration.key.task_digest != spec.digest:
        raise WrongState(f"the calibration is not of task {spec.name} as it is now: calibrate again")
    if calibration.key.estimator.partition(":")[2] != head_id:
        raise WrongState(f"the head of task {spec.name} is not the one that was calibrated: calibrate again")
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
    Route("/v1/tasks/{name}/signals", signals, methods=["POST"]),
    Route("/v1/tasks/{name}/head", show_head, methods=["GET"]),
    Route("/v1/tasks/{name}/head", put_head, methods=["PUT"]),
    Route("/v1/tasks/{name}/calibration", show_calibration, methods=["GET"]),
    Route("/v1/tasks/{name}/calibration", put_calibration, methods=["PUT"]),
]
