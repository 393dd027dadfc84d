"""The OpenAI API: chats and completions."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from agent.api.answering import answer_call
from agent.api.chat_answer import ChatShape
from agent.api.chat_request import parse_chat
from agent.api.completion_answer import CompletionShape
from agent.api.completion_request import parse_completion


async def chat_completions(request: Request) -> Response | ASGIApp:
    """``POST /v1/chat/completions``."""
    return await answer_call(request, parse_chat, ChatShape)


async def completions(request: Request) -> Response | ASGIApp:
    """``POST /v1/completions``: a text is continued, or its own log-probabilities are told."""
    return await answer_call(request, parse_completion, CompletionShape)


ROUTES = [
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
]
