"""The OpenAI API: chat completions and models."""

from __future__ import annotations

import difflib
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from agent.api import chat_answer
from agent.api.chat_request import ChatCall, parse_chat
from agent.api.deps import ApiDeps, ModelCard, deps_of
from agent.api.sse import EventStream, EventWriter, while_connected
from agent.api.wire import json_response, read_json
from agent.errors import AnswerCut, ModelNotFound, StillRunning
from agent.pipeline import Verdict
from agent.records import RequestRecord
from agent.storage.retention import LATE
from agent.telemetry import METRICS
from agent.types import InferenceRequest, OnLowConfidence, Token

MISSING = "missing"  # state of a model that is in the manifest and not on this device


async def chat_completions(request: Request) -> Response | ASGIApp:
    """``POST /v1/chat/completions``."""
    deps = deps_of(request)
    body = await read_json(request, deps.settings.server.max_body_bytes)
    call = parse_chat(
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
                    chat_answer.completion(event.record, answer, logprobs=call.request.sampling.logprobs),
                    answer.status,
                    chat_answer.headers_of(event.record, answer, replayed=event.replayed),
                )
    raise StillRunning("the run ended without a verdict; ask again")


async def given(deps: ApiDeps, request: InferenceRequest, verdict: Verdict) -> chat_answer.Answer:
    """Return what the caller gets for a verdict; a late answer counts as fetched from now on."""
    record = verdict.record
    answer = chat_answer.answer_of(record, request.on_low_confidence)
    if record.state in LATE:
        await deps.storage.journal.get(record.id, now_ms=deps.now_ms(), fetched=True)
    METRICS.count(
        "answers", kind=request.kind.value, decision=record.decision.action.value if record.decision else "none"
    )
    return answer


def _stream(deps: ApiDeps, call: ChatCall) -> EventStream:
    """Stream a chat completion.

    Text is written as it comes where the caller gets the draft whatever the verdict;
    otherwise it is held until the verdict. Text that was written is never replaced.
    """
    request = call.request
    held = request.on_low_confidence is not OnLowConfidence.DRAFT
    wants_logprobs = request.sampling.logprobs

    async def produce(writer: EventWriter) -> None:
        chunks = None
        waiting: dict[int, list[Token]] = {}
        async with aclosing(deps.pipeline.run(call.request)) as events:
            async for event in events:
                if isinstance(event, Verdict):
                    for index, tokens in waiting.items():
                        if chunks is not None and tokens:  # of what is no text, such as the end of a call
                            await writer.event(chunks.part("", (), chat_answer.logprob_content(tokens), index))
                    await _verdict(deps, call, event, writer, chunks)
                    return
                if held:
                    continue
                if chunks is None:
                    writer.set_header("x-outrider-request-id", request.id)
                    chunks = _chunks(call, request.id, request.received_at_ms, request.model)
                for chunk in chunks.role(event.choice):
                    await writer.event(chunk)
                tokens = waiting.setdefault(event.choice, [])
                if wants_logprobs:
                    tokens += event.tokens
                if event.text or event.calls:
                    content = chat_answer.logprob_content(tokens) if wants_logprobs else None
                    await writer.event(chunks.part(event.text, event.calls, content, event.choice))
                    tokens.clear()

    return EventStream(produce, heartbeat_s=deps.heartbeat_s)


async def _verdict(
    deps: ApiDeps, call: ChatCall, verdict: Verdict, writer: EventWriter, chunks: chat_answer.Chunks | None
) -> None:
    record = verdict.record
    answer = await given(deps, call.request, verdict)
    streamed = chunks is not None
    if chunks is None:
        for name, value in chat_answer.headers_of(record, answer, replayed=verdict.replayed).items():
            writer.set_header(name, value)
        chunks = _chunks(call, record.id, record.received_at_ms, answer.model)
        for chunk in chunks.whole(answer, logprobs=call.request.sampling.logprobs):
            await writer.event(chunk)
    for chunk in chunks.ending(record, answer):
        await writer.event(chunk)
    if streamed:
        refuse_a_cut(record)


def refuse_a_cut(record: RequestRecord) -> None:
    """Raise AnswerCut at the end of a stream of text that is not whole.

    A client that knows nothing of "outrider" would take the beginning for the whole.
    """
    generation = record.generation
    if generation is not None and generation.failure is not None:
        raise AnswerCut(
            f"the local answer was cut ({generation.failure.kind}); the whole one is to come: GET /v1/requests/{record.id}"
        )


def _chunks(call: ChatCall, request_id: str, received_at_ms: int, model: str) -> chat_answer.Chunks:
    return chat_answer.Chunks(request_id, received_at_ms, model, include_usage=call.include_usage)


async def list_models(request: Request) -> Response:
    """``GET /v1/models``."""
    deps = deps_of(request)
    cards = [card for card in deps.models() if card.state != MISSING]
    return json_response({"object": "list", "data": [_model_object(deps, card) for card in cards]})


async def show_model(request: Request) -> Response:
    """``GET /v1/models/{name}``."""
    deps = deps_of(request)
    return json_response(_model_object(deps, model_card(deps, request.path_params["name"])))


def model_card(deps: ApiDeps, name: str) -> ModelCard:
    """Return the card of an installed model. Raises ModelNotFound."""
    cards = {card.name: card for card in deps.models() if card.state != MISSING}
    if name not in cards:
        near = difflib.get_close_matches(name, cards, n=1)
        known = f"did you mean {near[0]}?" if near else f"installed are {', '.join(sorted(cards)) or 'none'}"
        raise ModelNotFound(f"model {name[:100]!r} is not installed; {known}", param="model")
    return cards[name]


def _model_object(deps: ApiDeps, card: ModelCard) -> dict[str, Any]:
    return {
        "id": card.name,
        "object": "model",
        "created": 0,
        "owned_by": "outrider",
        "outrider": {"sha256": card.sha256, "context_tokens": _context_tokens(deps, card), "state": card.state},
    }


def _context_tokens(deps: ApiDeps, card: ModelCard) -> int:
    """Return what one request gets: by the engine once it runs, till then by the settings."""
    wanted = min(card.context_tokens, deps.settings.engine.context_tokens)
    worker = deps.engine.status().get(card.name)
    return min(wanted, worker.context_tokens) if worker and worker.context_tokens else wanted


ROUTES = [
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/models", list_models, methods=["GET"]),
    Route("/v1/models/{name:path}", show_model, methods=["GET"]),
]
