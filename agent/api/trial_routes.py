"""``POST /v1/tasks/{name}/trials``: what one input would be answered with, by the very road of requests.

Nothing of it is journaled, decided or escalated: it is what `outrider evaluate` measures.
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.api.deps import ApiDeps, deps_of
from agent.api.fields import Fields
from agent.api.model_choice import CLASSIFYING, WRITING, known_model, need_model
from agent.api.structure_request import parse_structure
from agent.api.task_request import as_task
from agent.api.wire import json_response, read_json
from agent.errors import InvalidRequest
from agent.identifiers import uuid7
from agent.models.aliases import DEFAULT
from agent.refusal import refusal
from agent.structure import Tools
from agent.tasks import TaskKind, TaskSpec
from agent.types import InferenceRequest, Message, RequestKind


async def trial(request: Request) -> Response:
    """Answer ``input``, perhaps by another ``model`` than the task's, perhaps with ``tools``."""
    deps = deps_of(request)
    spec = deps.tasks.book.spec(request.path_params["name"])
    fields = Fields(await read_json(request, deps.settings.server.max_body_bytes))
    text = fields.text("input", deps.settings.server.max_body_bytes)
    model = fields.text("model", 256)
    fields.only("response_format")
    _, tools = parse_structure(fields)
    fields.finish()
    if text is None or not text.strip():
        raise fields.missing("input")
    asked = _request(deps, spec, text, model, tools)
    if deps.tasks.book.needs_no_model(asked):
        if model is not None:
            known_model(deps, model)
            raise InvalidRequest(
                f"task {spec.name} is answered by a head that reads the vectors of its encoder: no other model changes "
                "its answers; leave model out",
                param="model",
                code="contradiction",
            )
    else:
        need_model(deps, asked.model, CLASSIFYING if spec.kind is TaskKind.LABELS else WRITING)
    generation, confidence = await deps.pipeline.tried(asked)
    if generation.failure:
        raise refusal(generation.failure)
    judged = deps.tasks.book.judge(asked, generation, confidence)
    threshold = deps.settings.confidence.threshold if judged.threshold is None else judged.threshold
    score = judged.confidence.score
    return json_response(
        {
            "object": "outrider.trial",
            "task_digest": spec.digest,
            "answer": generation.text,
            "tool_calls": [{"name": call.name, "arguments": call.arguments} for call in generation.tool_calls],
            "probability": score,
            "calibrated": judged.confidence.calibrated,
            "threshold": threshold,
            "served": score is not None and score >= threshold,
            "model": generation.model or asked.model,
            "model_digest": generation.model_digest,
            "input_tokens": generation.prompt_tokens,
            "output_tokens": generation.output_tokens,
        }
    )


def _request(deps: ApiDeps, spec: TaskSpec, text: str, model: str | None, tools: Tools | None) -> InferenceRequest:
    now_ms = deps.now_ms()
    asked = InferenceRequest(
        id=uuid7(now_ms),
        kind=RequestKind.CLASSIFY if spec.kind is TaskKind.LABELS else RequestKind.CHAT,
        model=model or DEFAULT,
        messages=(Message("user", text),),
        tools=tools,
        received_at_ms=now_ms,
        deadline_at_ms=now_ms + int(deps.settings.server.request_timeout_s * 1000),
    )
    found = as_task(asked, spec, names_model=model is not None)
    return msgspec.structs.replace(found, model=deps.aliases.target(found.model))


ROUTES = [Route("/v1/tasks/{name}/trials", trial, methods=["POST"])]
