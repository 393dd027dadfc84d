"""``/v1/feedback`` and ``/v1/review``: what people say of answers, and what is there to be looked at.

Any caller may say that an answer was right or wrong. A review takes the admin token: it may answer a
row that waits in the queue in the target's place, and its verdicts on answers that were drawn at random
count for the monitor of a task.
"""

from __future__ import annotations

import difflib
import hashlib
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.api.deps import ApiDeps, deps_of, need_admin
from agent.api.fields import Fields
from agent.api.wire import json_response, query, read_json
from agent.errors import BodyGone, InvalidRequest, NotFound, WrongState
from agent.feedback import said, same_answer
from agent.identifiers import uuid7
from agent.records import (
    CloudAnswer,
    EscalationState,
    Feedback,
    FeedbackOrigin,
    RequestRecord,
    RequestState,
    Verdict,
)
from agent.storage.outbox_by_hand import PERSON
from agent.types import Action, InferenceRequest, RequestKind

MOST_LISTED = 1000
LONGEST_ANSWER = 1 << 20
LOOKED_THROUGH = 5000  # of the newest answered requests, for a random draw
_WAITING = (EscalationState.AWAITING_APPROVAL, EscalationState.PENDING)


def is_drawn(request_id: str, share: float) -> bool:
    """Whether a request is in the random draw of this share. By its id alone: the same draw each time, and for all."""
    number = int.from_bytes(hashlib.sha256(b"review " + request_id.encode()).digest()[:8], "big")
    return number < share * float(1 << 64)


async def give_feedback(request: Request) -> Response:
    """``POST /v1/feedback`` with ``request_id``, ``verdict``, and for two of the verdicts ``answer``."""
    deps = deps_of(request)
    fields = Fields(await read_json(request, deps.settings.server.max_body_bytes))
    request_id, verdict = fields.text("request_id", 64), fields.choice("verdict", Verdict)
    answer = fields.text("answer", LONGEST_ANSWER)
    is_review = fields.flag("review") or False
    drawn = fields.number("drawn", 0, 1, above_low=True)
    fields.finish()
    if not request_id:
        raise fields.missing("request_id")
    if verdict is None:
        raise fields.missing("verdict")
    if is_review:
        need_admin(request)
    elif drawn is not None:
        raise InvalidRequest('drawn belongs to a review: say "review": true', param="drawn", code="contradiction")
    record = await deps.storage.journal.get(request_id)
    if record is None:
        raise NotFound(f"there is no request {request_id[:100]}", param="request_id")
    if record.request is None:
        raise BodyGone(f"the texts of request {request_id} are gone, their retention has passed")
    if drawn is not None and not is_drawn(record.id, drawn):
        raise InvalidRequest(
            f"request {record.id} is not in the draw of {drawn:g}", param="drawn", code="invalid_value"
        )
    feedback = _feedback(
        record, record.request, verdict, answer, is_review=is_review, drawn=drawn, now_ms=deps.now_ms()
    )
    resolved = await _store(deps, record, feedback)
    return json_response({**feedback_object(feedback), "resolved": resolved})


def _feedback(
    record: RequestRecord,
    request: InferenceRequest,
    verdict: Verdict,
    answer: str | None,
    *,
    is_review: bool,
    drawn: float | None,
    now_ms: int,
) -> Feedback:
    local = record.generation.text if record.generation and not record.generation.failure else None
    is_label = request.kind is RequestKind.CLASSIFY
    if verdict in {Verdict.CORRECTED, Verdict.LABELLED}:
        if not answer or not answer.strip():
            raise InvalidRequest(f"{verdict} needs the right answer", param="answer", code="missing_required_parameter")
        answer = answer.strip() if is_label else answer
        if is_label and answer not in request.labels:
            near = difflib.get_close_matches(answer, request.labels, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(request.labels[:20])}"
            raise InvalidRequest(
                f"{answer[:80]!r} is no label of this request; {advice}", param="answer", code="invalid_value"
            )
    elif answer is not None:
        raise InvalidRequest(f"{verdict} takes no answer", param="answer", code="contradiction")
    right: bool | None = None
    if verdict is Verdict.APPROVED:
        if local is None:
            raise WrongState(f"request {record.id} has no local answer that could be approved")
        answer, right = local, True
    elif verdict is not Verdict.SKIPPED and local is not None:
        right = same_answer(local, answer or "", is_label=is_label)
        if verdict is Verdict.CORRECTED and right:
            raise InvalidRequest(
                "the correction is what was answered: approve it", param="answer", code="contradiction"
            )
    served = record.decision is not None and record.decision.action is Action.ANSWERED
    return Feedback(
        id=uuid7(now_ms),
        request_id=record.id,
        task=request.task,
        origin=FeedbackOrigin.REVIEW if is_review else FeedbackOrigin.CALLER,
        verdict=verdict,
        right=right,
        served=served,
        propensity=drawn,
        created_at_ms=now_ms,
        said=said(record, answer, by=PERSON if is_review else ""),
    )


async def _store(deps: ApiDeps, record: RequestRecord, feedback: Feedback) -> bool:
    """Keep it; a review with an answer also ends a row that waits. Returns whether it did."""
    row, answer = record.escalation, feedback.said.right_answer
    if feedback.origin is FeedbackOrigin.REVIEW and row is not None and row.state in _WAITING and answer is not None:
        told = CloudAnswer(text=answer, finish_reason="stop", model=PERSON)
        await deps.storage.outbox.answer(row.id, told, feedback, now_ms=feedback.created_at_ms)
        return row.purpose == "answer"
    if await deps.storage.feedback.put(feedback):
        deps.tasks.on_feedback(feedback)
        await deps.tasks.save()
    return False


def feedback_object(feedback: Feedback) -> dict[str, Any]:
    """Return a feedback as the API shows it."""
    return {"object": "outrider.feedback", **msgspec.to_builtins(feedback)}


async def list_feedback(request: Request) -> Response:
    """``GET /v1/feedback``: oldest first, of one task where ``task`` names it; with texts, so for the admin."""
    need_admin(request)
    asked = query(request, texts=("task", "after"), integers=("limit",))
    deps = deps_of(request)
    limit = asked.integer("limit", 1, MOST_LISTED) or 100
    found = await deps.storage.feedback.list(
        asked.text("task", 64), limit=limit + 1, after_id=asked.text("after", 64) or ""
    )
    data = [feedback_object(await _with_input(deps, one)) for one in found[:limit]]
    return json_response({"object": "list", "data": data, "has_more": len(found) > limit})


async def _with_input(deps: ApiDeps, feedback: Feedback) -> Feedback:
    """Return a feedback with its input where its request still has it."""
    if feedback.said.input is not None:
        return feedback
    record = await deps.storage.journal.get(feedback.request_id)
    if record is None or record.request is None:
        return feedback
    with_input = msgspec.structs.replace(feedback.said, input=record.request.messages[-1].content)
    return msgspec.structs.replace(feedback, said=with_input)


async def list_review(request: Request) -> Response:
    """``GET /v1/review``: what a person may look at, with its text.

    Rows that wait in the queue, oldest first; then, with ``served`` (per mille), a random draw of that
    share of the answers that were served and nobody has reviewed. ``task`` narrows both.
    """
    need_admin(request)
    asked = query(request, texts=("task",), integers=("limit", "served"))
    deps = deps_of(request)
    task, limit = asked.text("task", 64), asked.integer("limit", 1, MOST_LISTED) or 50
    per_mille = asked.integer("served", 0, 1000) or 0
    found: list[dict[str, Any]] = []
    for state in _WAITING:
        for row in await deps.storage.outbox.list(state, limit=MOST_LISTED):
            if len(found) == limit:
                break
            record = await deps.storage.journal.get(row.request_id)
            if row.purpose == "answer" and record is not None and _concerns(record, task):
                found.append(_review_object(record, None))
    if per_mille:
        found += await _drawn(deps, task, per_mille / 1000, limit - len(found))
    return json_response({"object": "list", "data": found})


async def _drawn(deps: ApiDeps, task: str | None, share: float, limit: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    before: str | None = None
    for _ in range(0, LOOKED_THROUGH, MOST_LISTED):
        page = await deps.storage.journal.list(RequestState.ANSWERED, MOST_LISTED, before)
        for head in page:
            if len(found) >= limit:
                return found
            is_served = head.decision is not None and head.decision.action is Action.ANSWERED
            if not is_served or not is_drawn(head.id, share):
                continue
            record = await deps.storage.journal.get(head.id)
            said_already = {one.origin for one in await deps.storage.feedback.of_request(head.id)}
            if record is not None and _concerns(record, task) and FeedbackOrigin.REVIEW not in said_already:
                found.append(_review_object(record, share))
        if len(page) < MOST_LISTED:
            break
        before = page[-1].id
    return found


def _concerns(record: RequestRecord, task: str | None) -> bool:
    return record.request is not None and (task is None or record.request.task == task)


def _review_object(record: RequestRecord, drawn: float | None) -> dict[str, Any]:
    request, generation, confidence = record.request, record.generation, record.confidence
    assert request is not None
    return {
        "object": "outrider.review",
        "request_id": record.id,
        "task": request.task,
        "kind": request.kind,
        "input": request.messages[-1].content if request.messages else "",
        "answer": generation.text if generation and not generation.failure else None,
        "confidence": confidence.score if confidence else None,
        "labels": list(request.labels),
        "state": record.state,
        "waits": record.escalation.state if record.escalation else None,
        "reason": record.escalation.reason if record.escalation else None,
        "drawn": drawn,
        "received_at_ms": record.received_at_ms,
    }


ROUTES = [
    Route("/v1/feedback", give_feedback, methods=["POST"]),
    Route("/v1/feedback", list_feedback, methods=["GET"]),
    Route("/v1/review", list_review, methods=["GET"]),
]
