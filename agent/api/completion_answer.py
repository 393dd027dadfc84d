"""From a stored record to a ``text_completion``: the older of the OpenAI API's two shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agent.api import chat_answer
from agent.api.chat_answer import IMPOSSIBLE, LOCAL, Answer
from agent.records import RequestRecord
from agent.types import Generation, InferenceRequest, Token


def echoed_text(request: InferenceRequest, generation: Generation | None) -> str:
    """Return the prompt as it stands before the completion, empty when no echo was asked for."""
    if not request.echo:
        return ""
    if isinstance(request.prompt, str):
        return request.prompt
    tokens = generation.prompt_logprobs if generation else ()
    return b"".join(token.text_bytes for token in tokens).decode("utf-8", "replace")


def completion(record: RequestRecord, answer: Answer, request: InferenceRequest) -> dict[str, Any]:
    """Return the ``text_completion`` object."""
    return {
        **head(record.id, record.received_at_ms, answer.model),
        "choices": [whole_choice(record, answer, request)],
        "usage": chat_answer.usage(answer),
        "outrider": chat_answer.outrider_object(record, answer),
    }


def whole_choice(record: RequestRecord, answer: Answer, request: InferenceRequest) -> dict[str, Any]:
    """Return the one choice with all of its text."""
    local = answer.source == LOCAL
    before = echoed_text(request, record.generation) if local else ""
    logprobs = None
    if request.sampling.logprobs and local and record.generation is not None:
        prompt = record.generation.prompt_logprobs if request.echo else ()
        logprobs = logprob_lists(answer.tokens, request.sampling.top_logprobs, prompt=prompt)
    return choice(before + (answer.text or ""), logprobs, answer.finish_reason)


def head(request_id: str, received_at_ms: int, model: str) -> dict[str, Any]:
    """Return what the whole object and each chunk begin with."""
    return {
        "id": f"cmpl-{request_id}",
        "object": "text_completion",
        "created": received_at_ms // 1000,
        "model": model,
    }


def choice(text: str, logprobs: dict[str, Any] | None = None, finish_reason: str | None = None) -> dict[str, Any]:
    """Return a choice, or a piece of it."""
    return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def logprob_lists(
    tokens: Sequence[Token], top: int, *, prompt: Sequence[Token] = (), offset: int = 0
) -> dict[str, Any]:
    """Return the ``logprobs`` object: lists side by side, the first of a prompt null.

    Text offsets count characters from ``offset`` on.
    """
    every = [*prompt, *tokens]
    begins = []
    for token in every:
        begins.append(offset)
        offset += len(token.text_bytes.decode("utf-8", "replace"))
    first = 1 if prompt else 0
    return {
        "tokens": [_name(token.text_bytes) for token in every],
        "token_logprobs": [None] * first + [_figure(token.logprob) for token in every[first:]],
        "top_logprobs": [None] * first + [_likeliest(token) for token in every[first:]] if top else None,
        "text_offset": begins,
    }


def _likeliest(token: Token) -> dict[str, float]:
    """Map the likeliest tokens to their figures; the token itself is always among them."""
    found = {_name(other.text_bytes): _figure(other.logprob) for other in token.top}
    found.setdefault(_name(token.text_bytes), _figure(token.logprob))
    return found


def _figure(logprob: float) -> float:
    return max(logprob, IMPOSSIBLE)


def _name(text_bytes: bytes) -> str:
    """Return a token as a string; a part of a character is spelt in bytes, so that two never look alike."""
    try:
        return text_bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in text_bytes)
