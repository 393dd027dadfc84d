"""From a stored record to a chat completion: status, headers, body and chunks.

A live answer and a replayed one go the same way, so they cannot differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from agent.errors import OutriderError, QueueFull, StillRunning, Unresolved
from agent.pipeline import refusal
from agent.records import RequestRecord, RequestState
from agent.structure import CallPiece, ToolCall
from agent.types import Action, Choice, OnLowConfidence, Reason, Token

LOCAL = "local"
IMPOSSIBLE = -9999.0  # the OpenAI API's logprob of a token that is not among the likely ones


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller is given for a record, before it is written as one of the two forms."""

    status: int = 200
    text: str | None
    refusal: str | None = None
    finish_reason: str | None = None
    source: str | None = None  # "local", the target's name, or None when there is no text
    model: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    tokens: tuple[Token, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    others: tuple[Choice, ...] = ()  # answers after the first, where the request asked for several


def answer_of(record: RequestRecord, on_low_confidence: OnLowConfidence) -> Answer:
    """Return what the caller gets now. Raises the error that a record without an answer stands for."""
    match record.state:
        case RequestState.RESOLVED if record.cloud_answer is not None:
            cloud = record.cloud_answer
            return Answer(
                text=cloud.text,
                tool_calls=cloud.tool_calls,
                finish_reason=cloud.finish_reason or "stop",
                source=record.answered_by,
                model=cloud.model,
                prompt_tokens=cloud.prompt_tokens,
                output_tokens=cloud.output_tokens,
            )
        case RequestState.ANSWERED if on_low_confidence is OnLowConfidence.ABSTAIN and _is_uncertain(record):
            return Answer(text=None, refusal=_abstention(record), finish_reason="stop", model=record.model)
        case RequestState.QUEUED if on_low_confidence is OnLowConfidence.DEFER:
            return Answer(status=202, text=None, model=record.model)
        case RequestState.QUEUED if on_low_confidence is OnLowConfidence.WAIT:
            return msgspec.structs.replace(_draft(record) or Answer(text=None, model=record.model), status=202)
        case RequestState.QUEUED:
            return _draft(record) or Answer(status=202, text=None, model=record.model)
        case RequestState.RUNNING:
            raise StillRunning(f"request {record.id} is still running; ask again later")
    if draft := _draft(record):
        return draft
    raise _failure_of(record)


def _draft(record: RequestRecord) -> Answer | None:
    generation = record.generation
    if generation is None or generation.failure is not None:
        return None
    return Answer(
        text=generation.text,
        finish_reason=generation.finish_reason,
        source=LOCAL,
        model=record.model,
        prompt_tokens=generation.prompt_tokens,
        cached_tokens=generation.cached_tokens,
        output_tokens=generation.output_tokens,
        tokens=generation.tokens,
        tool_calls=generation.tool_calls,
        others=generation.others,
    )


def _is_uncertain(record: RequestRecord) -> bool:
    return record.decision is not None and record.decision.action is Action.UNCERTAIN


def _abstention(record: RequestRecord) -> str:
    score = record.confidence.score if record.confidence else None
    threshold = record.decision.threshold if record.decision else None
    if score is None or threshold is None:
        return "Uncertain: there is no signal of how sure the local model is, and the request asked to abstain."
    return (
        f"Uncertain: the local model's confidence is {score:.2f}, below the threshold of {threshold:.2f}, "
        "and the request asked to abstain."
    )


def _failure_of(record: RequestRecord) -> OutriderError:
    if record.state in {RequestState.UNRESOLVED, RequestState.CANCELLED} and record.escalation is not None:
        row = record.escalation
        why = row.last_error or row.reason
        return Unresolved(f"nobody answered request {record.id}: its row in the queue is {row.state} ({why})")
    if record.decision is not None and record.decision.reason is Reason.QUEUE_FULL:
        return QueueFull("the queue is full and there is no local answer; drain, cancel or purge rows")
    return refusal(record.generation.failure if record.generation else None)


def outrider_object(record: RequestRecord, answer: Answer) -> dict[str, Any]:
    """Return the ``outrider`` object: how sure, what was decided, who answered, where it stands."""
    decision, confidence = record.decision, record.confidence
    found: dict[str, Any] = {
        "request_id": record.id,
        "confidence": confidence.score if confidence else None,
        "calibrated": bool(confidence and confidence.calibrated),
        "decision": decision.action if decision else None,
        "reason": decision.reason if decision else None,
        "source": answer.source,
        "state": record.state,
    }
    if decision is not None and decision.threshold is not None:
        found["threshold"] = decision.threshold
    return found


def headers_of(record: RequestRecord, answer: Answer, *, replayed: bool) -> dict[str, str]:
    """Return the x-outrider-* headers, and Location where the answer is to be asked for later."""
    found = {"x-outrider-request-id": record.id}
    if record.decision is not None:
        found["x-outrider-decision"] = record.decision.action.value
    if record.confidence is not None and record.confidence.score is not None:
        found["x-outrider-confidence"] = f"{record.confidence.score:.6g}"
    if answer.source is not None:
        found["x-outrider-source"] = answer.source
    if replayed:
        found["x-outrider-replayed"] = "true"
    if answer.status == 202:
        found["location"] = f"/v1/requests/{record.id}"
    return found


def completion(record: RequestRecord, answer: Answer, *, logprobs: bool) -> dict[str, Any]:
    """Return the ``chat.completion`` object."""
    choices = [_choice(0, answer, answer.refusal, logprobs=logprobs and answer.source == LOCAL)]
    choices += [_choice(index, other, None, logprobs=logprobs) for index, other in enumerate(answer.others, 1)]
    return {
        "id": f"chatcmpl-{record.id}",
        "object": "chat.completion",
        "created": record.received_at_ms // 1000,
        "model": answer.model,
        "choices": choices,
        "usage": usage(answer),
        "system_fingerprint": _fingerprint(record),
        "outrider": outrider_object(record, answer),
    }


def _choice(index: int, said: Answer | Choice, refusal: str | None, *, logprobs: bool) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": said.text, "refusal": refusal}
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


def usage(answer: Answer) -> dict[str, Any]:
    """Return the ``usage`` object of the answer that is given."""
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.output_tokens,
        "total_tokens": answer.prompt_tokens + answer.output_tokens,
        "prompt_tokens_details": {"cached_tokens": answer.cached_tokens},
    }


def _fingerprint(record: RequestRecord) -> str | None:
    digest = record.generation.model_digest if record.generation else ""
    return f"fp_{digest[:12]}" if digest else None


def logprob_content(tokens: Sequence[Token]) -> dict[str, Any]:
    """Return the ``logprobs`` object of a choice."""
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


class Chunks:
    """Writes one answer as ``chat.completion.chunk`` objects, in order: roles, text, finish reasons, verdict, usage.

    The verdict is in the last chunk that has a choice.
    """

    def __init__(self, request_id: str, received_at_ms: int, model: str, *, include_usage: bool) -> None:
        self._base: dict[str, Any] = {
            "id": f"chatcmpl-{request_id}",
            "object": "chat.completion.chunk",
            "created": received_at_ms // 1000,
            "model": model,
        }
        if include_usage:
            self._base["usage"] = None
        self._include_usage = include_usage
        self._begun: set[int] = set()

    def role(self, index: int = 0) -> Iterator[dict[str, Any]]:
        """Yield the first chunk of a choice, once."""
        if index not in self._begun:
            self._begun.add(index)
            yield self._chunk({"role": "assistant", "content": "", "refusal": None}, index=index)

    def part(
        self, text: str, calls: Sequence[CallPiece], logprobs: dict[str, Any] | None = None, index: int = 0
    ) -> dict[str, Any]:
        """Return a chunk with a piece of the text, of calls, or both."""
        delta: dict[str, Any] = {"content": text} if text else {}
        if calls:
            delta["tool_calls"] = [_call_delta(piece) for piece in calls]
        return self._chunk(delta, logprobs, index=index)

    def whole(self, answer: Answer, *, logprobs: bool) -> Iterator[dict[str, Any]]:
        """Yield the chunks of an answer that is known before any of it was written."""
        answers: list[Answer | Choice] = [answer, *answer.others]
        for index, said in enumerate(answers):
            yield from self.role(index)
            calls = [
                CallPiece(index=at, id=call.id, name=call.name, arguments=call.arguments)
                for at, call in enumerate(said.tool_calls)
            ]
            if said.text or calls:
                yield self.part(said.text or "", calls, logprob_content(said.tokens) if logprobs else None, index)

    def ending(self, record: RequestRecord, answer: Answer) -> Iterator[dict[str, Any]]:
        """Yield the chunk with the verdict, then the usage if it was asked for."""
        delta = {"refusal": answer.refusal} if answer.refusal else {}
        verdict = self._chunk(delta, finish_reason=answer.finish_reason)
        for index, other in enumerate(answer.others, 1):
            yield verdict
            verdict = self._chunk({}, finish_reason=other.finish_reason, index=index)
        verdict["system_fingerprint"] = _fingerprint(record)
        verdict["outrider"] = outrider_object(record, answer)
        yield verdict
        if self._include_usage:
            yield {**self._base, "choices": [], "usage": usage(answer)}

    def _chunk(
        self,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
        index: int = 0,
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._base, "choices": [choice]}
