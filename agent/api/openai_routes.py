"""The OpenAI API: chats, completions and models."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from agent.api.answering import MISSING, answer_call, model_card
from agent.api.chat_answer import ChatShape
from agent.api.chat_request import parse_chat
from agent.api.completion_answer import CompletionShape
from agent.api.completion_request import parse_completion
from agent.api.deps import ApiDeps, ModelCard, deps_of
from agent.api.wire import json_response


async def chat_completions(request: Request) -> Response | ASGIApp:
    """``POST /v1/chat/completions``."""
    return await answer_call(request, parse_chat, ChatShape)


async def completions(request: Request) -> Response | ASGIApp:
    """``POST /v1/completions``: a text is continued, or its own log-probabilities are told."""
    return await answer_call(request, parse_completion, CompletionShape)


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
    return {
        "id": card.name,
        "object": "model",
        "created": 0,
        "owned_by": "outrider",
        "root": card.parent or card.name,
        "parent": card.parent,  # of an adapter: its base model
        "outrider": {"sha256": card.sha256, "context_tokens": _context_tokens(deps, card), "state": card.state},
    }


def _context_tokens(deps: ApiDeps, card: ModelCard) -> int:
    """Return what one request gets: by the engine once it runs, till then by the settings."""
    wanted = min(card.context_tokens, deps.settings.engine.context_tokens)
    worker = deps.engine.status().get(card.name)
    return min(wanted, worker.context_tokens) if worker and worker.context_tokens else wanted


ROUTES = [
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/models", list_models, methods=["GET"]),
    Route("/v1/models/{name:path}", show_model, methods=["GET"]),
]
