"""``POST /v1/tasks/{name}/signals``: what the local models say of inputs, by the very path that answers requests.

Nothing of it is journaled or escalated: it is what `tasks teach` and `calibrate` fit by.
"""

from __future__ import annotations

import asyncio
import base64
from array import array
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.api.deps import ApiDeps, deps_of
from agent.api.fields import Fields
from agent.api.model_choice import CLASSIFYING, WRITING, need_model
from agent.api.structure_request import MOST_TOOLS
from agent.api.task_request import as_task, tools_of
from agent.api.wire import json_response, read_json
from agent.confidence.appraisers import MOST_SAMPLES
from agent.confidence.calibration import key_of
from agent.identifiers import uuid7
from agent.label_likeness import ENCODER
from agent.models.aliases import DEFAULT
from agent.refusal import refusal
from agent.task_writer import Example
from agent.tasks import TaskKind, TaskSpec
from agent.types import Generation, InferenceRequest, Message, RequestKind

MOST_INPUTS = 256  # in one call
LONGEST_INPUT = 1 << 20  # characters
MOST_SHOWN = 16  # demonstrations of one input


class Signal(StrEnum):
    """What is asked of the inputs."""

    EMBEDDING = "embedding"  # the vector of each, by the encoder
    HIDDEN = "hidden"  # the last hidden state of the task's model at the end of the prompt of each
    SCORES = "scores"  # the log-probability of each label as the answer, by the task's model; hidden states, too
    ANSWER = "answer"  # the local answer and how sure it is, before any calibration
    DRAFT = "draft"  # the local answer behind given demonstrations, with its figures, before anything was taught


OF_LABELS = frozenset({Signal.HIDDEN, Signal.SCORES})


class Input(NamedTuple):
    """One input, and how it is asked about."""

    text: str
    tools: tuple[Any, ...]
    example: Example


async def signals(request: Request) -> Response:
    """``POST /v1/tasks/{name}/signals`` with ``inputs`` and ``signal``. Nothing of it is journaled or escalated."""
    deps = deps_of(request)
    spec = deps.tasks.book.spec(request.path_params["name"])
    fields = Fields(await read_json(request, deps.settings.server.max_body_bytes))
    signal = fields.choice("signal", Signal)
    items = fields.array("inputs", MOST_INPUTS)
    model = fields.text("model", 256)  # another one than the task's: what it would do with that
    fields.finish()
    if signal is None:
        raise fields.missing("signal")
    if not items:
        raise fields.missing("inputs")
    inputs = [_input(fields, spec, index, item) for index, item in enumerate(items)]
    if spec.kind is not TaskKind.LABELS and signal in OF_LABELS:
        raise fields.wrong_value("signal", f'of a task of kind {spec.kind} is not "{signal}"')
    if spec.kind is TaskKind.LABELS and signal is Signal.DRAFT:
        raise fields.wrong_value("signal", 'of a task of kind labels is not "draft"')
    if signal is Signal.EMBEDDING:
        return json_response(await _vectors(deps, [one.text for one in inputs]))
    requests = [_request(deps, spec, one, model) for one in inputs]
    if not deps.tasks.book.needs_no_model(requests[0]) or signal in OF_LABELS:
        need_model(deps, requests[0].model, CLASSIFYING if spec.kind is TaskKind.LABELS else WRITING)
    places = asyncio.Semaphore(deps.settings.engine.parallel)

    async def one_at_its_place(one: InferenceRequest, given: Input) -> dict[str, Any]:
        async with places:
            match signal:
                case Signal.HIDDEN:
                    return await _scores(deps, one, ())
                case Signal.SCORES:
                    return await _scores(deps, one, sorted(one.labels))
                case Signal.DRAFT:
                    return await _draft(deps, spec, one, given)
                case _:
                    return await _answer(deps, spec, one)

    tasks = [asyncio.create_task(one_at_its_place(one, given)) for one, given in zip(requests, inputs, strict=True)]
    try:
        rows = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return json_response({"signal": signal, "task_digest": spec.digest, "rows": rows})


def _input(fields: Fields, spec: TaskSpec, index: int, item: object) -> Input:
    if isinstance(item, str):
        item = {"input": item}
    if not isinstance(item, dict):
        raise fields.wrong_type(f"inputs[{index}]", "a text, or an object with one")
    own = Fields(item, fields.path(f"inputs[{index}]"))
    text = own.text("input", LONGEST_INPUT)
    if text is None or not text.strip():
        raise fields.wrong_type("inputs", "a list of texts that are not empty")
    shown = own.array("shown", MOST_SHOWN) or []
    if not all(isinstance(one, list) and len(one) == 2 and all(isinstance(part, str) for part in one) for one in shown):
        raise own.wrong_type("shown", "a list of pairs of texts: an input and its answer")
    tools = tuple(own.array("tools", MOST_TOOLS) or ())
    if tools and spec.kind is not TaskKind.TOOL:
        raise own.wrong_value("tools", f"are of kind tool; task {spec.name} is of kind {spec.kind}")
    example = Example(
        shown=tuple((told, answer) for told, answer in shown),
        closeness=own.number("closeness", -1, 1) or 0.0,
        samples=own.integer("samples", 0, MOST_SAMPLES) or 0,
    )
    own.finish()
    return Input(text, tools, example)


def _request(deps: ApiDeps, spec: TaskSpec, given: Input, model: str | None) -> InferenceRequest:
    now_ms = deps.now_ms()
    kind = RequestKind.CLASSIFY if spec.kind is TaskKind.LABELS else RequestKind.CHAT
    asked = InferenceRequest(
        id=uuid7(now_ms),
        kind=kind,
        model=model or DEFAULT,
        messages=(Message("user", given.text),),
        tools=tools_of(given.tools) if given.tools else None,
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


async def _scores(deps: ApiDeps, request: InferenceRequest, labels: Sequence[str]) -> dict[str, Any]:
    told = await deps.engine.score(request, labels, hidden=True)
    if told.failure:
        raise refusal(told.failure)
    return {
        "model": told.model,
        "model_digest": told.model_digest,
        "runtime": told.runtime,
        "logprobs": told.logprobs,
        "trained": told.trained,
        "hidden": base64.b64encode(told.hidden).decode("ascii") or None,  # float32; null where the model gives none
    }


async def _answer(deps: ApiDeps, spec: TaskSpec, request: InferenceRequest) -> dict[str, Any]:
    generation, confidence = await deps.pipeline.tried(request)
    if generation.failure:
        raise refusal(generation.failure)
    key = key_of(spec.digest, generation, confidence)
    return {
        "answer": generation.text,
        "tool_calls": _calls(generation),
        "score": confidence.raw if confidence.score else confidence.score,
        "key": key,
    }


async def _draft(deps: ApiDeps, spec: TaskSpec, request: InferenceRequest, given: Input) -> dict[str, Any]:
    generation = await deps.pipeline.drafted(request, given.example)
    if generation.failure:
        raise refusal(generation.failure)
    told = generation.appraisal
    return {
        "answer": generation.text,
        "tool_calls": _calls(generation),
        "features": told.features if told else {},
        "agreement": told.agreement if told else None,
        "fields": told.fields if told else {},
        "model": generation.model,
        "model_digest": generation.model_digest,
        "runtime": generation.runtime,
    }


def _calls(generation: Generation) -> list[dict[str, str]]:
    return [{"name": call.name, "arguments": call.arguments} for call in generation.tool_calls]


ROUTES = [Route("/v1/tasks/{name}/signals", signals, methods=["POST"])]
