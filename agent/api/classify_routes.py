"""``POST /v1/classify``: one of given labels, with the probability of each."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.api import chat_answer
from agent.api.chat_answer import LOCAL, Answer
from agent.api.classify_request import parse_classify
from agent.api.deps import ApiDeps, deps_of
from agent.api.openai_routes import given, model_card
from agent.api.sse import while_connected
from agent.api.wire import json_response, read_json
from agent.confidence import labels as label_confidence
from agent.errors import StillRunning
from agent.pipeline import Verdict
from agent.records import RequestRecord
from agent.types import InferenceRequest


async def classify(request: Request) -> Response:
    """``POST /v1/classify``."""
    deps = deps_of(request)
    body = await read_json(request, deps.settings.server.max_body_bytes)
    asked = parse_classify(
        body, request.headers, server=deps.settings.server, routing=deps.settings.routing, now_ms=deps.now_ms()
    )
    model_card(deps, asked.model)
    return await while_connected(request.receive, _answer(deps, asked))


async def _answer(deps: ApiDeps, asked: InferenceRequest) -> Response:
    async with aclosing(deps.pipeline.run(asked)) as events:
        async for event in events:
            if isinstance(event, Verdict):
                answer = await given(deps, asked, event)
                headers = chat_answer.headers_of(event.record, answer, replayed=event.replayed)
                return json_response(classification(event.record, answer), answer.status, headers)
    raise StillRunning("the run ended without a verdict; ask again")


def classification(record: RequestRecord, answer: Answer) -> dict[str, Any]:
    """Return the ``classification`` object.

    ``label`` is who answered's choice; ``probability``, ``margin``, ``mass`` and the list of
    ``labels`` (in the request's order) are the local model's, where it was asked.
    """
    found: dict[str, Any] = {
        "id": f"classify-{record.id}",
        "object": "classification",
        "created": record.received_at_ms // 1000,
        "model": answer.model,
        "label": answer.text,
        "refusal": answer.refusal,
        "probability": None,
        "margin": None,
        "mass": None,
        "labels": [],
    }
    scores = record.generation.label_scores if record.generation else None
    if scores is not None and record.request is not None:
        probabilities = label_confidence.distribution(scores)
        chosen = record.request.labels.index(answer.text) if answer.text in record.request.labels else None
        signals = record.confidence.signals if record.confidence else {}
        found["probability"] = probabilities[chosen] if chosen is not None and answer.source == LOCAL else None
        found["margin"] = signals.get("margin")
        found["mass"] = scores.mass
        found["labels"] = [
            {"label": label, "probability": probability, "logprob": logprob, "tokens": tokens}
            for label, probability, logprob, tokens in zip(
                record.request.labels, probabilities, scores.logprobs, scores.token_counts, strict=True
            )
        ]
    found["usage"] = chat_answer.usage(answer)
    found["outrider"] = chat_answer.outrider_object(record, answer)
    return found


ROUTES = [Route("/v1/classify", classify, methods=["POST"])]
