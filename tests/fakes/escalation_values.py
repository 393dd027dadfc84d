"""A request, its draft and its outbox row, as the dispatcher holds them."""

from __future__ import annotations

from agent.records import Escalation, EscalationState, RequestRecord, RequestState
from agent.types import EgressPolicy, Generation, Handoff, InferenceRequest, Message, Sampling

ASKED = (Message("system", "Be brief."), Message("user", "Capital of France?"))
PLAIN = Sampling()


def record(*, draft="Lyon", sampling=PLAIN, failure=None, request=True, hops=0, **asked):
    return RequestRecord(
        request=InferenceRequest(
            id="r1",
            model="local",
            messages=asked.pop("messages", ASKED),
            sampling=sampling,
            received_at_ms=0,
            hops=hops,
            user="u-17",
            metadata={"order": "4711"},
            **asked,
        )
        if request
        else None,
        id="r1",
        state=RequestState.QUEUED,
        model="local",
        received_at_ms=0,
        generation=None if draft is None else Generation(text=draft, failure=failure),
    )


def row(handoff=Handoff.FRESH):
    return Escalation(
        id="e1",
        request_id="r1",
        state=EscalationState.LEASED,
        reason="low_confidence",
        target="big",
        egress=EgressPolicy.ALLOW,
        handoff=handoff,
        priority=0,
        attempts=0,
        max_attempts=12,
        created_at_ms=0,
        available_at_ms=0,
        expires_at_ms=1,
    )
