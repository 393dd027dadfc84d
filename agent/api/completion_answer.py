"""From an answer to a ``text_completion``, whole or in chunks: the older of the OpenAI API's two shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from agent.api.answer import IMPOSSIBLE, LOCAL, Answer, Given, outrider_object, usage
from agent.api.call import Call
from agent.types import Choice, Delta, Generation, InferenceRequest, Token


class CompletionShape:
    """Writes one answer. An echo is written whole, since its prompt is scored before anything is known."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._sampling = call.request.sampling
        self._head: dict[str, Any] = {}
        self._waiting: dict[int, list[Token]] = {}  # by choice: tokens whose text no chunk has had yet
        self._offsets: dict[int, int] = {}  # by choice: characters written

    def whole(self, given: Sequence[Given]) -> dict[str, Any]:
        """Return the ``text_completion`` object; the choices of several prompts follow each other."""
        choices = [
            choice for one, request in zip(given, self._call.requests, strict=True) for choice in _choices(one, request)
        ]
        verdicts = [outrider_object(one.record, one.answer) for one in given]
        record, answer, _ = given[0]
        return {
            **_head(record.id, record.received_at_ms, answer.model),
            "choices": [{**choice, "index": index} for index, choice in enumerate(choices)],
            "usage": usage(*(one.answer for one in given)),
            "outrider": verdicts[0] if len(given) == 1 else {"requests": verdicts},
        }

    def pieces(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """Yield the chunk of a piece of text, once there is some."""
        index = delta.choice
        if self._sampling.logprobs:
            self._waiting.setdefault(index, []).extend(delta.tokens)
        if delta.text:
            request = self._call.request
            self._head = self._head or _head(request.id, request.received_at_ms, request.model)
            yield self._chunk(_choice(delta.text, self._logprobs(index), index=index))
            self._offsets[index] = self._offsets.get(index, 0) + len(delta.text)

    def rest(self, given: Given) -> Iterator[dict[str, Any]]:
        """Yield the text if none was written yet, the verdict, the usage if it was asked for."""
        record, answer, _ = given
        if self._head:
            said: list[Answer | Choice] = [answer, *answer.others]
            last = [self._last_choice(index, one) for index, one in enumerate(said)]
        else:
            self._head = _head(record.id, record.received_at_ms, answer.model)
            last = _choices(given, self._call.request)
        for choice in last[:-1]:
            yield self._chunk(choice)
        yield {**self._chunk(last[-1]), "outrider": outrider_object(record, answer)}
        if self._call.include_usage:
            yield {**self._head, "choices": [], "usage": usage(answer)}

    def _last_choice(self, index: int, said: Answer | Choice) -> dict[str, Any]:
        tokens = self._waiting.setdefault(index, [])
        if said.end is not None:
            tokens.append(said.end)
        return _choice("", self._logprobs(index) if tokens else None, said.finish_reason, index)

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**self._head, "choices": [choice]}

    def _logprobs(self, index: int) -> dict[str, Any] | None:
        if not self._sampling.logprobs:
            return None
        tokens = self._waiting.pop(index, [])
        return _logprob_lists(tokens, self._sampling.top_logprobs, offset=self._offsets.get(index, 0))


def _head(request_id: str, received_at_ms: int, model: str) -> dict[str, Any]:
    return {
        "id": f"cmpl-{request_id}",
        "object": "text_completion",
        "created": received_at_ms // 1000,
        "model": model,
    }


def _choices(given: Given, request: InferenceRequest) -> list[dict[str, Any]]:
    """Return the choices of one request with all of their text."""
    record, answer, _ = given
    generation = record.generation if answer.source == LOCAL else None
    before = _echoed_text(request, generation)
    prompt = generation.prompt_logprobs if generation and request.echo else ()
    wanted = request.sampling.logprobs and generation is not None
    said: list[Answer | Choice] = [answer, *answer.others]
    return [
        _choice(
            before + (one.text or ""),
            _logprob_lists(_with_end(one), request.sampling.top_logprobs, prompt=prompt) if wanted else None,
            one.finish_reason,
            index,
        )
        for index, one in enumerate(said)
    ]


def _with_end(said: Answer | Choice) -> tuple[Token, ...]:
    """Return the tokens with the one that ended them: whoever counts from the end expects it there."""
    return said.tokens if said.end is None else (*said.tokens, said.end)


def _echoed_text(request: InferenceRequest, generation: Generation | None) -> str:
    """Return the prompt as it stands before the completion, empty when no echo was asked for."""
    if not request.echo or generation is None:
        return ""
    if isinstance(request.prompt, str):
        return request.prompt
    return b"".join(token.text_bytes for token in generation.prompt_logprobs).decode("utf-8", "replace")


def _choice(
    text: str, logprobs: dict[str, Any] | None, finish_reason: str | None = None, index: int = 0
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


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
