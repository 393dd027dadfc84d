"""``GET /v1/models``: what is installed, what one request gets of it, and what it can do."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.api.deps import ApiDeps, ModelCard, deps_of
from agent.api.encoder_request import MOST_INPUTS
from agent.api.model_choice import CLASSIFYING, MISSING, WRITING, model_card
from agent.api.sampling_request import MOST_CHOICES, MOST_STOPS, MOST_TOP_LOGPROBS
from agent.api.wire import json_response
from agent.encoder import EncoderTask
from agent.engine.supervisor import WorkerState
from agent.engine.worker_status import ModelTraits
from agent.tasks import MOST_LABELS


async def list_models(request: Request) -> Response:
    """``GET /v1/models``."""
    deps = deps_of(request)
    cards = [card for card in deps.models() if card.state != MISSING]
    return json_response({"object": "list", "data": [_model_object(deps, card) for card in cards]})


async def show_model(request: Request) -> Response:
    """``GET /v1/models/{name}``."""
    deps = deps_of(request)
    return json_response(_model_object(deps, model_card(deps, request.path_params["name"])))


def _model_object(deps: ApiDeps, card: ModelCard) -> dict[str, Any]:
    worker = deps.engine.status().get(card.name)
    traits = worker.traits if worker else None
    context_tokens = _context_tokens(deps, card)
    return {
        "id": card.name,
        "object": "model",
        "created": 0,
        "owned_by": "outrider",
        "root": card.parent or card.name,
        "parent": card.parent,  # of an adapter: its base model
        "outrider": {
            "sha256": card.sha256,
            "licence": card.licence,
            "bytes": card.bytes,
            "state": card.state,
            "loaded": worker is not None and worker.state is WorkerState.READY,
            "runtime": (worker.runtime or None) if worker else None,
            "parameters": (traits.parameters or None) if traits else None,
            "quantization": (traits.quantization or None) if traits else None,
            "held_as": (traits.held_as or None) if traits else None,  # in memory, where that is not the file's form
            "context_tokens": context_tokens,
            "limits": {
                "output_tokens": context_tokens - 1,  # after a prompt of one token
                "at_once": deps.settings.engine.parallel,
                "waiting_line": deps.settings.engine.waiting_line,
                "body_bytes": deps.settings.server.max_body_bytes,
                "messages": deps.settings.server.max_messages,
                "n": MOST_CHOICES,
                "stop": MOST_STOPS,
                "top_logprobs": MOST_TOP_LOGPROBS,
                "labels": MOST_LABELS,
                "inputs": MOST_INPUTS,
            },
            "encoder": _encoder(traits),
            "device": msgspec.to_builtins(worker.device) if worker else None,
            "absent": list(traits.absent) if traits else None,  # by name, what this runtime does not do
            "capabilities": _capabilities(card, traits),
        },
    }


def _context_tokens(deps: ApiDeps, card: ModelCard) -> int:
    """Return what one request gets: by the engine once it runs, till then by the settings."""
    wanted = min(card.context_tokens, deps.settings.engine.context_tokens)
    worker = deps.engine.status().get(card.name)
    return min(wanted, worker.context_tokens) if worker and worker.context_tokens else wanted


def _capabilities(card: ModelCard, traits: ModelTraits | None) -> dict[str, bool | None]:
    """Return what can be asked of a model; null where it is known once the model was loaded."""
    tasks = {traits.encoder.task} if traits and traits.encoder else {*card.tasks}
    writes = bool(tasks & WRITING)
    return {
        "chat": writes,
        "completions": writes,
        "classify": bool(tasks & CLASSIFYING),
        "stream": writes,
        "tools": writes,
        "json_schema": writes,
        "logprobs": writes,
        "prompt_logprobs": writes,
        "suffix": traits.fills_gaps if traits else None,
        "reasoning": traits.thinks if traits else None,
        "vision": False,
        "audio": False,
        "embeddings": EncoderTask.EMBED in tasks,
        "rerank": EncoderTask.RERANK in tasks,
        "tag": EncoderTask.TAG in tasks,
    }


def _encoder(traits: ModelTraits | None) -> dict[str, Any] | None:
    """Return what an encoder gives; null for any other model, or one that was not loaded yet."""
    return msgspec.to_builtins(traits.encoder) if traits and traits.encoder else None


ROUTES = [
    Route("/v1/models", list_models, methods=["GET"]),
    Route("/v1/models/{name:path}", show_model, methods=["GET"]),
]
