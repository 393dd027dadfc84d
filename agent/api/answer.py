"""From a stored record to what its caller is given, before it is written in a shape of the API.

A live answer and a replayed one go the same way, so they cannot differ.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from agent.appraisal import FieldConfidence
from agent.errors import OutriderError, QueueFull, StillRunning, Unresolved
from agent.records import RequestRecord, RequestState
from agent.refusal import refusal
from agent.structure import ToolCall
from agent.types import Action, Choice, OnLowConfidence, Reason, Token

LOCAL = "local"
IMPOSSIBLE = -9999.0  # the OpenAI API's logprob of a token that is not among the likely ones


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller is given for a record, before it is written."""

    status: int = 200
    text: str | None
    refusal: str | None = None
    finish_reason: str | None = None
    source: str | None = None  # "local", the target's name, or None when there is no text
    model: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    accepted_tokens: int = 0
    rejected_tokens: int = 0
    tokens: tuple[Token, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    fields: dict[str, FieldConfidence] = {}  # of an answer in JSON or of calls, by JSON pointer
    end: Token | None = None
    thoughts: str = ""
    thought_tokens: int = 0
    others: tuple[Choice, ...] = ()  # answers after the first, where the request asked for several


class Given(NamedTuple):
    """An answer, and the record it stands for."""

    record: RequestRecord
    answer: Answer
    replayed: bool  # an Idempotency-Key brought it back


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
            return msgspec.structs.replace(draft_of(record) or Answer(text=None, model=record.model), status=202)
        case RequestState.QUEUED:
            return draft_of(record) or Answer(status=202, text=None, model=record.model)
        case RequestState.RUNNING:
            raise StillRunning(f"request {record.id} is still running; ask again later")
    if draft := draft_of(record):
        return draft
    raise failure_of(record)


def draft_of(record: RequestRecord) -> Answer | None:
    """Return the local answer, if there is a whole one."""
    generation = record.generation
    if generation is None or generation.failure is not None:
        return None
    return Answer(
        text=generation.text,
        finish_reason=generation.finish_reason,
        source=LOCAL,
        model=generation.model or record.model,  # of a task with a head: its encoder
        prompt_tokens=generation.prompt_tokens,
        cached_tokens=generation.cached_tokens,
        output_tokens=generation.output_tokens,
        accepted_tokens=generation.accepted_tokens,
        rejected_tokens=generation.rejected_tokens,
        tokens=generation.tokens,
        tool_calls=generation.tool_calls,
        fields=generation.fields,
        end=generation.end,
        thoughts=generation.thoughts,
        thought_tokens=generation.thought_tokens,
        others=generation.others,
    )


def _is_uncertain(record: RequestRecord) -> bool:
    return record.decision is not None and record.decision.action is Action.UNCERTAIN


def _abstention(record: RequestRecord) -> str:
    score = record.confidence.score if record.confidence else None
    threshold = record.decision.threshold if record.decision else None
    if score is not None and threshold is None:
        return "Uncertain: no answer of this task can be served under its promise, and the request asked to abstain."
    if score is None or threshold is None:
        return "Uncertain: there is no signal of how sure the local model is, and the request asked to abstain."
    return (
        f"Uncertain: the local model's confidence is {score:.2f}, below the threshold of {threshold:.2f}, "
        "and the request asked to abstain."
    )


def failure_of(record: RequestRecord) -> OutriderError:
    """Return the error that a record without an answer stands for."""
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
    if decision is not None:
        found["rule"] = decision.rule_id
        found["trace"] = list(decision.trace)
    if decision is not None and decision.threshold is not None:
        found["threshold"] = decision.threshold
    if confidence is not None and confidence.guarantee is not None:
        found["guarantee"] = confidence.guarantee
    if confidence is not None and confidence.fault:
        found["fault"] = confidence.fault
    row = record.escalation
    if row is not None and record.state is RequestState.RESOLVED and (record.settled_at_ms or 0) > row.expires_at_ms:
        found["stale"] = True  # it came when it was not wanted any more
    answers: list[Answer | Choice] = [answer, *answer.others]
    if any(said.fields for said in answers):
        found["fields"] = [
            {
                pointer: {"confidence": field.score, "null_probability": field.null_probability}
                for pointer, field in said.fields.items()
            }
            for said in answers
        ]
    return found


def headers_of(given: Given) -> dict[str, str]:
    """Return the x-outrider-* headers, and Location where the answer is to be asked for later."""
    record, answer, replayed = given
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


def usage(*answers: Answer) -> dict[str, Any]:
    """Return the ``usage`` object of the answers that are given."""
    prompt = sum(answer.prompt_tokens for answer in answers)
    output = sum(answer.output_tokens for answer in answers)
    accepted = sum(answer.accepted_tokens for answer in answers)
    rejected = sum(answer.rejected_tokens for answer in answers)
    guessed = {"accepted_prediction_tokens": accepted, "rejected_prediction_tokens": rejected}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": sum(answer.cached_tokens for answer in answers)},
        "completion_tokens_details": {
            "reasoning_tokens": sum(answer.thought_tokens for answer in answers),
            **(guessed if accepted or rejected else {}),
        },
    }


def fingerprint(record: RequestRecord) -> str | None:
    """Return what names the model file that answered."""
    digest = record.generation.model_digest if record.generation else ""
    return f"fp_{digest[:12]}" if digest else None
