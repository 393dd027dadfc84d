"""``POST /v1/completions``: a text is continued, or its own log-probabilities are told."""

from __future__ import annotations

from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from agent.api import chat_answer, completion_answer
from agent.api.chat_request import ChatCall
from agent.api.completion_request import parse_completion
from agent.api.deps import ApiDeps, deps_of
from agent.api.openai_routes import given, model_card, refuse_a_cut
from agent.api.sse import EventStream, EventWriter, while_connected
from agent.api.wire import json_response, read_json
from agent.errors import StillRunning
from agent.pipeline import Verdict
from agent.types import OnLowConfidence, Token


async def completions(request: Request) -> Response | ASGIApp:
    """``POST /v1/completions``."""
    deps = deps_of(request)
    body = await read_json(request, deps.settings.server.max_body_bytes)
    call = parse_completion(
        body, request.headers, server=deps.settings.server, routing=deps.settings.routing, now_ms=deps.now_ms()
    )
    model_card(deps, call.request.model)
    if call.stream:
        return _stream(deps, call)
    return await while_connected(request.receive, _answer(deps, call))


async def _answer(deps: ApiDeps, call: ChatCall) -> Response:
    async with aclosing(deps.pipeline.run(call.request)) as events:
        async for event in events:
            if isinstance(event, Verdict):
                answer = await given(deps, call.request, event)
                return json_response(
                    completion_answer.completion(event.record, answer, call.request),
                    answer.status,
                    chat_answer.headers_of(event.record, answer, replayed=event.replayed),
                )
    raise StillRunning("the run ended without a verdict; ask again")


def _stream(deps: ApiDeps, call: ChatCall) -> EventStream:
    """Stream a completion; an echo is held back until its prompt has been scored, with what follows."""
    request = call.request
    held = request.on_low_confidence is not OnLowConfidence.DRAFT or request.echo
    head = completion_answer.head(request.id, request.received_at_ms, request.model)

    async def produce(writer: EventWriter) -> None:
        waiting: list[Token] = []
        offset = 0
        begun = False
        async with aclosing(deps.pipeline.run(request)) as events:
            async for event in events:
                if isinstance(event, Verdict):
                    await _verdict(deps, call, event, writer, begun=begun)
                    return
                if held:
                    continue
                if request.sampling.logprobs:
                    waiting += event.tokens
                if event.text:
                    if not begun:
                        writer.set_header("x-outrider-request-id", request.id)
                        begun = True
                    logprobs = None
                    if request.sampling.logprobs:
                        top = request.sampling.top_logprobs
                        logprobs = completion_answer.logprob_lists(waiting, top, offset=offset)
                    await writer.event({**head, "choices": [completion_answer.choice(event.text, logprobs)]})
                    offset += len(event.text)
                    waiting.clear()

    return EventStream(produce, heartbeat_s=deps.heartbeat_s)


async def _verdict(deps: ApiDeps, call: ChatCall, verdict: Verdict, writer: EventWriter, *, begun: bool) -> None:
    """Write the rest: the text if none was written yet, the verdict, the usage if it was asked for."""
    record = verdict.record
    answer = await given(deps, call.request, verdict)
    head = completion_answer.head(record.id, record.received_at_ms, answer.model)
    if begun:
        last = completion_answer.choice("", None, answer.finish_reason)
    else:
        for name, value in chat_answer.headers_of(record, answer, replayed=verdict.replayed).items():
            writer.set_header(name, value)
        last = completion_answer.whole_choice(record, answer, call.request)
    await writer.event({**head, "choices": [last], "outrider": chat_answer.outrider_object(record, answer)})
    if call.include_usage:
        await writer.event({**head, "choices": [], "usage": chat_answer.usage(answer)})
    if begun:
        refuse_a_cut(record)


ROUTES = [Route("/v1/completions", completions, methods=["POST"])]
