"""From an answer to a ``chat.completion``, whole or in chunks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from agent.api.answer import IMPOSSIBLE, LOCAL, Answer, Given, fingerprint, outrider_object, usage
from agent.api.call import Call
from agent.structure import CallPiece
from agent.types import Choice, Delta, Token


class ChatShape:
    """Writes one answer. Its chunks come in order: roles, text, finish reasons, verdict, usage.

    The verdict is in the last chunk that has a choice.
    """

    def __init__(self, call: Call) -> None:
        self._request = call.request
        self._wants_logprobs = call.request.sampling.logprobs
        self._include_usage = call.include_usage
        self._base: dict[str, Any] = {}
        self._waiting: dict[int, list[Token]] = {}  # by choice: tokens whose text no chunk has had yet

    def whole(self, given: Sequence[Given]) -> dict[str, Any]:
        """Return the ``chat.completion`` object."""
        ((record, answer, _),) = given
        logprobs = self._wants_logprobs
        choices = [_choice(0, answer, answer.refusal, logprobs=logprobs and answer.source == LOCAL)]
        choices += [_choice(index, other, None, logprobs=logprobs) for index, other in enumerate(answer.others, 1)]
        return {
            "id": f"chatcmpl-{record.id}",
            "object": "chat.completion",
            "created": record.received_at_ms // 1000,
            "model": answer.model,
            "choices": choices,
            "usage": usage(answer),
            "system_fingerprint": fingerprint(record),
            "outrider": outrider_object(record, answer),
        }

    def pieces(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """Yield the chunks of a piece of the answer."""
        if not self._base:
            self._begin(self._request.id, self._request.received_at_ms, self._request.model)
        yield from self._role(delta.choice)
        tokens = self._waiting[delta.choice]
        if self._wants_logprobs:
            tokens += delta.tokens
        if delta.thought:
            yield self._chunk({"reasoning_content": delta.thought}, index=delta.choice)
        if delta.text or delta.calls:
            yield self._part(delta.text, delta.calls, tokens, delta.choice)
            tokens.clear()

    def rest(self, given: Given) -> Iterator[dict[str, Any]]:
        """Yield what no chunk has told yet, and the end."""
        record, answer, _ = given
        if self._base:
            for index, tokens in self._waiting.items():
                if tokens:  # of what is no text, such as the end of a call
                    yield self._part("", (), tokens, index)
        else:
            self._begin(record.id, record.received_at_ms, answer.model)
            yield from self._all(answer)
        delta = {"refusal": answer.refusal} if answer.refusal else {}
        verdict = self._chunk(delta, finish_reason=answer.finish_reason)
        for index, other in enumerate(answer.others, 1):
            yield verdict
            verdict = self._chunk({}, finish_reason=other.finish_reason, index=index)
        verdict["system_fingerprint"] = fingerprint(record)
        verdict["outrider"] = outrider_object(record, answer)
        yield verdict
        if self._include_usage:
            yield {**self._base, "choices": [], "usage": usage(answer)}

    def _begin(self, request_id: str, received_at_ms: int, model: str) -> None:
        self._base = {
            "id": f"chatcmpl-{request_id}",
            "object": "chat.completion.chunk",
            "created": received_at_ms // 1000,
            "model": model,
        }
        if self._include_usage:
            self._base["usage"] = None

    def _role(self, index: int) -> Iterator[dict[str, Any]]:
        """Yield the first chunk of a choice, once."""
        if index not in self._waiting:
            self._waiting[index] = []
            yield self._chunk({"role": "assistant", "content": "", "refusal": None}, index=index)

    def _all(self, answer: Answer) -> Iterator[dict[str, Any]]:
        """Yield the chunks of an answer that is known before any of it was written."""
        answers: list[Answer | Choice] = [answer, *answer.others]
        for index, said in enumerate(answers):
            yield from self._role(index)
            calls = [
                CallPiece(index=at, id=call.id, name=call.name, arguments=call.arguments)
                for at, call in enumerate(said.tool_calls)
            ]
            if said.thoughts:
                yield self._chunk({"reasoning_content": said.thoughts}, index=index)
            if said.text or calls:
                yield self._part(said.text or "", calls, said.tokens, index)

    def _part(self, text: str, calls: Sequence[CallPiece], tokens: Sequence[Token], index: int) -> dict[str, Any]:
        delta: dict[str, Any] = {"content": text} if text else {}
        if calls:
            delta["tool_calls"] = [_call_delta(piece) for piece in calls]
        return self._chunk(delta, logprob_content(tokens) if self._wants_logprobs else None, index=index)

    def _chunk(
        self,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
        index: int = 0,
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._base, "choices": [choice]}


def _choice(index: int, said: Answer | Choice, refusal: str | None, *, logprobs: bool) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": said.text, "refusal": refusal}
    if said.thoughts:
        message["reasoning_content"] = said.thoughts
    if said.tool_calls:
        message["content"] = said.text or None
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in said.tool_calls
        ]
    return {
        "index": index,
        "message": message,
        "logprobs": logprob_content(said.tokens) if logprobs else None,
        "finish_reason": said.finish_reason,
    }


def _call_delta(piece: CallPiece) -> dict[str, Any]:
    if not piece.id:
        return {"index": piece.index, "function": {"arguments": piece.arguments}}
    function = {"name": piece.name, "arguments": piece.arguments}
    return {"index": piece.index, "id": piece.id, "type": "function", "function": function}


def logprob_content(tokens: Sequence[Token]) -> dict[str, Any]:
    """Return the ``logprobs`` object of some tokens."""
    return {
        "content": [
            {
                **_logprob(token.text_bytes, token.logprob),
                "top_logprobs": [_logprob(other.text_bytes, other.logprob) for other in token.top],
            }
            for token in tokens
        ],
        "refusal": None,
    }


def _logprob(text_bytes: bytes, logprob: float) -> dict[str, Any]:
    return {
        "token": text_bytes.decode("utf-8", "replace"),
        "logprob": logprob if math.isfinite(logprob) else IMPOSSIBLE,
        "bytes": list(text_bytes),
    }
