"""From an answer to a ``text_completion``, whole or in chunks: the older of the OpenAI API's two shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from agent.api.answer import IMPOSSIBLE, LOCAL, Answer, Given, outrider_object, usage
from agent.api.call import Call
from agent.records import RequestRecord
from agent.types import Delta, Generation, InferenceRequest, Token


class CompletionShape:
    """Writes one answer. An echo is written whole, since its prompt is scored before anything is known."""

    def __init__(self, call: Call) -> None:
        self._request = call.request
        self._sampling = call.request.sampling
        self._include_usage = call.include_usage
        self._head: dict[str, Any] = {}
        self._waiting: list[Token] = []  # tokens whose text no chunk has had yet
        self._offset = 0

    def whole(self, given: Sequence[Given]) -> dict[str, Any]:
        """Return the ``text_completion`` object."""
        ((record, answer, _),) = given
        return {
            **_head(record.id, record.received_at_ms, answer.model),
            "choices": [_whole_choice(record, answer, self._request)],
            "usage": usage(answer),
            "outrider": outrider_object(record, answer),
        }

    def pieces(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """Yield the chunk of a piece of text, once there is some."""
        if self._sampling.logprobs:
            self._waiting += delta.tokens
        if delta.text:
            if not self._head:
                self._head = _head(self._request.id, self._request.received_at_ms, self._request.model)
            yield {**self._head, "choices": [_choice(delta.text, self._logprobs())]}
            self._offset += len(delta.text)

    def rest(self, given: Given) -> Iterator[dict[str, Any]]:
        """Yield the text if none was written yet, the verdict, the usage if it was asked for."""
        record, answer, _ = given
        if self._head:
            last = _choice("", self._logprobs() if self._waiting else None, answer.finish_reason)
        else:
            self._head = _head(record.id, record.received_at_ms, answer.model)
            last = _whole_choice(record, answer, self._request)
        yield {**self._head, "choices": [last], "outrider": outrider_object(record, answer)}
        if self._include_usage:
            yield {**self._head, "choices": [], "usage": usage(answer)}

    def _logprobs(self) -> dict[str, Any] | None:
        tokens, self._waiting = self._waiting, []
        if not self._sampling.logprobs:
            return None
        return _logprob_lists(tokens, self._sampling.top_logprobs, offset=self._offset)


def _head(request_id: str, received_at_ms: int, model: str) -> dict[str, Any]:
    return {
        "id": f"cmpl-{request_id}",
        "object": "text_completion",
        "created": received_at_ms // 1000,
        "model": model,
    }


def _whole_choice(record: RequestRecord, answer: Answer, request: InferenceRequest) -> dict[str, Any]:
    local = answer.source == LOCAL
    before = _echoed_text(request, record.generation) if local else ""
    logprobs = None
    if request.sampling.logprobs and local and record.generation is not None:
        prompt = record.generation.prompt_logprobs if request.echo else ()
        logprobs = _logprob_lists(answer.tokens, request.sampling.top_logprobs, prompt=prompt)
    return _choice(before + (answer.text or ""), logprobs, answer.finish_reason)


def _echoed_text(request: InferenceRequest, generation: Generation | None) -> str:
    """Return the prompt as it stands before the completion, empty when no echo was asked for."""
    if not request.echo:
        return ""
    if isinstance(request.prompt, str):
        return request.prompt
    tokens = generation.prompt_logprobs if generation else ()
    return b"".join(token.text_bytes for token in tokens).decode("utf-8", "replace")


def _choice(text: str, logprobs: dict[str, Any] | None = None, finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def _logprob_lists(
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
