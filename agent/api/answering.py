"""One handler for every endpoint that asks for an answer: only the parser and the shape differ."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from agent.api.answer import Given, answer_of, headers_of
from agent.api.auth import CallerKey, of_caller
from agent.api.call import Call, Parser, Shape
from agent.api.deps import ApiDeps, deps_of, key_of
from agent.api.experiment_request import in_experiment
from agent.api.model_choice import CLASSIFYING, WRITING, known_model, need_model
from agent.api.sse import EventStream, EventWriter, while_connected
from agent.api.task_request import as_task, task_name, with_model, with_policies
from agent.api.wire import error_object, json_response, read_json
from agent.errors import AnswerCut, OutriderError, StillRunning
from agent.pipeline import Verdict
from agent.records import RequestRecord
from agent.storage.retention import LATE
from agent.strictness import stricter
from agent.telemetry import METRICS
from agent.types import InferenceRequest, OnLowConfidence, RequestKind

Complete = Callable[[ApiDeps, InferenceRequest], Awaitable[InferenceRequest | Response]]
Whole = Callable[[Sequence[Given]], dict[str, Any]]  # writes the body of a response


async def answer_call(request: Request, parse: Parser, shape: Callable[[Call], Shape]) -> Response | ASGIApp:
    """Answer a call whole or as a stream, as it asks."""
    call = await _call(request, parse)
    if call.stream:
        return answer_stream(deps_of(request), call, shape(call))
    return await _whole(request, call, shape(call).whole)


async def answer_whole(request: Request, parse: Parser, whole: Whole, complete: Complete) -> Response:
    """Answer a call of a kind that has no stream. ``complete`` adds what only the model knows, or answers itself."""
    deps = deps_of(request)
    call = await _call(request, parse)
    completed = await complete(deps, call.request)
    if isinstance(completed, Response):
        return completed
    return await _whole(request, msgspec.structs.replace(call, requests=(completed,)), whole)


async def _call(request: Request, parse: Parser) -> Call:
    deps = deps_of(request)
    body = await read_json(request, deps.settings.server.max_body_bytes)
    return make_call(deps, body, request.headers, parse, key=key_of(request))


def make_call(
    deps: ApiDeps, body: Mapping[str, Any], headers: Headers, parse: Parser, *, key: CallerKey | None
) -> Call:
    """Return the call of a body, completed by the task, the alias and the caller's key. Raises as the parser does."""
    settings = deps.settings
    routing, names_model = settings.routing, bool(body.get("model"))
    task = task_name(body)
    spec = deps.tasks.book.spec(task) if task is not None else None
    if spec is not None:
        body, routing = with_model(body), with_policies(routing, spec)
    call = parse(body, headers, server=settings.server, routing=routing, now_ms=deps.now_ms())
    requests = call.requests
    if spec is not None:
        requests = tuple(as_task(one, spec, names_model=names_model) for one in requests)
    requests = tuple(as_caller(key, one) for one in requests)
    requests = tuple(in_experiment(deps, one, body, headers) for one in requests)
    if deps.tasks.book.needs_no_model(requests[0]):
        # A head answers, whatever is installed; a name that means nothing is an error all the same.
        named = requests[0].model
        model = known_model(deps, named) if names_model else deps.aliases.target(named)
    else:
        tasks = CLASSIFYING if requests[0].kind is RequestKind.CLASSIFY else WRITING
        model = need_model(deps, requests[0].model, tasks)
    return msgspec.structs.replace(call, requests=tuple(msgspec.structs.replace(one, model=model) for one in requests))


def as_caller(key: CallerKey | None, asked: InferenceRequest) -> InferenceRequest:
    """Return what is asked for as the caller's key has it: it never leaves under a looser policy."""
    if key is None:
        return asked
    return msgspec.structs.replace(
        asked,
        key=key.name,
        egress=stricter(key.egress, asked.egress),
        idempotency_key=of_caller(key, asked.idempotency_key),
    )


async def _whole(request: Request, call: Call, whole: Whole) -> Response:
    deps = deps_of(request)
    given = await while_connected(request.receive, _run_all(deps, call.requests))
    if len(given) > 1:
        return json_response(whole(given))
    return json_response(whole(given), given[0].answer.status, headers_of(given[0]))


async def _run_all(deps: ApiDeps, requests: Sequence[InferenceRequest]) -> list[Given]:
    """Answer all requests of a call, as many at a time as the engine decodes together.

    The first that fails ends the others, and is named.
    """
    if len(requests) == 1:
        return [await run_one(deps, requests[0])]
    places = asyncio.Semaphore(deps.settings.engine.parallel)

    async def run(index: int, request: InferenceRequest) -> Given:
        async with places:
            try:
                return await run_one(deps, request)
            except OutriderError as error:
                error.param = f"{error.param}[{index}]" if error.param == "prompt" else error.param
                error.args = (f"of prompt {index}: {error}",)
                raise

    tasks = [asyncio.create_task(run(index, request)) for index, request in enumerate(requests)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def run_one(deps: ApiDeps, request: InferenceRequest) -> Given:
    """Run a request to its verdict."""
    async with aclosing(deps.pipeline.run(request)) as events:
        async for event in events:
            if isinstance(event, Verdict):
                return await _given(deps, request, event)
    raise StillRunning("the run ended without a verdict; ask again")


async def _given(deps: ApiDeps, request: InferenceRequest, verdict: Verdict) -> Given:
    """Return what the caller gets for a verdict; a late answer counts as fetched from now on."""
    record = verdict.record
    answer = answer_of(record, request.on_low_confidence)
    if record.state in LATE:
        await deps.storage.journal.get(record.id, now_ms=deps.now_ms(), fetched=True)
    METRICS.count(
        "answers", kind=request.kind.value, decision=record.decision.action.value if record.decision else "none"
    )
    return Given(record, answer, verdict.replayed)


def answer_stream(
    deps: ApiDeps, call: Call, shape: Shape, fault: Callable[[OutriderError], object] = error_object
) -> EventStream:
    """Stream an answer. ``fault`` makes the event that tells an error.

    Text is written as it comes where the caller gets the draft whatever the verdict;
    otherwise it is held until the verdict. Text that was written is never replaced.
    """
    request = call.request
    held = request.on_low_confidence is not OnLowConfidence.DRAFT or request.echo

    async def produce(writer: EventWriter) -> None:
        begun = False
        async with aclosing(deps.pipeline.run(request)) as events:
            async for event in events:
                if isinstance(event, Verdict):
                    given = await _given(deps, request, event)
                    if not begun:
                        for name, value in headers_of(given).items():
                            writer.set_header(name, value)
                    for chunk in shape.rest(given):
                        await writer.event(chunk)
                    if begun:
                        _refuse_a_cut(given.record)
                    return
                if held:
                    continue
                for chunk in shape.pieces(event):
                    if not begun:
                        writer.set_header("x-outrider-request-id", request.id)
                        begun = True
                    await writer.event(chunk)

    return EventStream(produce, heartbeat_s=deps.heartbeat_s, fault=fault)


def _refuse_a_cut(record: RequestRecord) -> None:
    """Raise AnswerCut at the end of a stream of text that is not whole.

    A client that knows nothing of "outrider" would take the beginning for the whole.
    """
    generation = record.generation
    if generation is not None and generation.failure is not None:
        raise AnswerCut(
            f"the local answer was cut ({generation.failure.kind}); the whole one is to come: GET /v1/requests/{record.id}"
        )
