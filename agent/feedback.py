"""What an answer from elsewhere says of the local one. Pure."""

from __future__ import annotations

import json

import msgspec

from agent.records import CloudAnswer, Feedback, FeedbackOrigin, RequestRecord, Said, Verdict
from agent.types import EgressPolicy, RequestKind


def same_answer(one: str, other: str, *, is_label: bool) -> bool:
    """Whether two answers say the same: labels exactly, JSON by its values, a text but for spaces and case."""
    if is_label:
        return one.strip() == other.strip()
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return " ".join(one.split()).casefold() == " ".join(other.split()).casefold()


def of_target(record: RequestRecord, answer: CloudAnswer, *, id: str, now_ms: int) -> Feedback | None:  # noqa: A002 - the field's word
    """Return what a target's answer says of the local one of a task; None where there is nothing to compare.

    An answer that is not one of the task's labels says nothing. What was escalated is judged whenever it may
    leave without a person (propensity 1); where a person releases rows, nobody knows the chance.
    """
    request, generation, row = record.request, record.generation, record.escalation
    if request is None or request.task is None or generation is None or generation.failure or row is None or row.edited:
        return None
    is_label = request.kind is RequestKind.CLASSIFY
    text = answer.text.strip() if is_label else answer.text
    if not text or (is_label and text not in request.labels):
        return None
    right = same_answer(generation.text, text, is_label=is_label)
    is_sample = row.purpose == "quality_sample"
    drawn = record.decision.propensity if record.decision else None
    by_itself = row.egress in {EgressPolicy.ALLOW, EgressPolicy.REDACT} and not row.released
    return Feedback(
        id=id,
        request_id=record.id,
        task=request.task,
        origin=FeedbackOrigin.QUALITY_SAMPLE if is_sample else FeedbackOrigin.ESCALATION,
        verdict=Verdict.APPROVED if right else Verdict.CORRECTED,
        right=right,
        served=is_sample,
        propensity=drawn if is_sample else (1.0 if by_itself else None),
        created_at_ms=now_ms,
        # Its text stays with the request only, as long as that keeps it: nobody has asked to remember it.
        said=msgspec.structs.replace(said(record, text, by=row.target or ""), input=None),
    )


def said(record: RequestRecord, right_answer: str | None, *, by: str = "") -> Said:
    """Return what is kept with a feedback about this record."""
    request, generation, confidence = record.request, record.generation, record.confidence
    return Said(
        input=request.messages[-1].content if request and request.messages else None,
        local_answer=generation.text if generation and not generation.failure else None,
        right_answer=right_answer,
        score=confidence.raw if confidence else None,
        probability=confidence.score if confidence else None,
        calibration=confidence.calibration_id if confidence else None,
        model=generation.model if generation else "",
        by=by,
    )
