"""The values that storage keeps of a request and of its way to a target. Frozen, like all values."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from agent.structure import ToolCall
from agent.types import Confidence, Decision, EgressPolicy, Generation, Handoff, InferenceRequest, Message


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """The route that a request came in under: what is decided later may be stricter, never looser."""

    egress: EgressPolicy = EgressPolicy.APPROVE
    target: str | None = None  # None: no target was configured
    target_fingerprint: str | None = None


class RequestState(StrEnum):
    """Life of a request. See docs/state-machine.md."""

    RUNNING = "running"
    ANSWERED = "answered"
    QUEUED = "queued"
    RESOLVED = "resolved"
    UNRESOLVED = "unresolved"
    CANCELLED = "cancelled"
    FAILED = "failed"


class EscalationState(StrEnum):
    """Life of an outbox row. See docs/state-machine.md."""

    AWAITING_APPROVAL = "awaiting_approval"
    PENDING = "pending"
    LEASED = "leased"
    SUCCEEDED = "succeeded"
    DEAD = "dead"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class HoldReason(StrEnum):
    """Why a row that was allowed or released waits for a person again."""

    POLICY_TIGHTENED = "policy_tightened"  # its target now wants a person's release
    TARGET_CHANGED = "target_changed"  # the name now stands for another address or model
    TARGET_REMOVED = "target_removed"
    HOLDS_IMAGES = "holds_images"  # images, sound or files, in which nothing can be replaced


class Escalation(msgspec.Struct, frozen=True, kw_only=True):
    """One outbox row as a value."""

    id: str  # UUIDv7; also the Idempotency-Key on every send
    request_id: str
    state: EscalationState
    reason: str  # why it is in the outbox (Reason), or why it waits or died
    target: str | None  # None: no target was configured when it was accepted
    target_fingerprint: str | None = None  # the address and model that it was accepted or released for
    released: bool = False  # by a person, to this target
    egress: EgressPolicy  # the policy it was accepted under
    handoff: Handoff
    priority: int
    attempts: int
    max_attempts: int
    created_at_ms: int
    available_at_ms: int
    expires_at_ms: int
    lease: str | None = None  # random token; every settle is guarded by it
    lease_expires_at_ms: int | None = None
    last_error: str | None = None
    bytes: int = 0
    task: str | None = None
    edited: bool = False  # a person wrote other messages in place of the request's own: only those leave
    estimated_input_tokens: int = 0  # what a send is expected to take; 0: unknown
    estimated_output_tokens: int = 0
    purpose: str = "answer"  # or quality_sample: its request stays answered, the reply is compared with what was served


class CloudAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A usable answer from a target."""

    text: str
    finish_reason: str | None
    tool_calls: tuple[ToolCall, ...] = ()
    model: str  # as the target names itself
    prompt_tokens: int = 0
    output_tokens: int = 0
    verdict: str | None = None  # handoff verify: "right" or "wrong"
    raw_sha256: str = ""


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A request as storage knows it: the join of request, results and outbox row."""

    request: InferenceRequest | None  # None once the body's retention has passed
    id: str
    state: RequestState
    model: str
    received_at_ms: int
    settled_at_ms: int | None = None
    generation: Generation | None = None  # the local answer (kept beside the late one)
    confidence: Confidence | None = None
    decision: Decision | None = None
    escalation: Escalation | None = None
    cloud_answer: CloudAnswer | None = None
    answered_by: str | None = None  # "local" or the target's name
    edited: tuple[Message, ...] = ()  # what leaves in place of the request's messages, where a person wrote it


class StoredPrefix(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a named prefix on disk. Its text is in none of this."""

    name: str
    model: str
    model_digest: str
    fingerprint: str  # of all that its bytes depend on; compared by whoever reads them
    tokens: int
    parts: tuple[tuple[int, int, int], ...]  # first token, the one after the last, bytes
    created_at_ms: int
    file: str = ""  # its name in the folder
    disk_bytes: int = 0
    used_at_ms: int = 0


class FeedbackOrigin(StrEnum):
    """Who said what is right."""

    CALLER = "caller"  # by /v1/feedback, of its own accord
    REVIEW = "review"  # a person, by `outrider review`
    QUALITY_SAMPLE = "quality_sample"  # a target, of a served answer that was drawn to be checked
    ESCALATION = "escalation"  # a target, of what was not served


class Verdict(StrEnum):
    """What was said."""

    APPROVED = "approved"  # the local answer is right
    CORRECTED = "corrected"  # it is wrong, and this is right
    LABELLED = "labelled"  # this is right, said without a look at the local answer
    SKIPPED = "skipped"  # whoever was asked could not say


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a feedback that may hold text of a user."""

    input: str | None = None  # None: its text was gone already
    local_answer: str | None = None
    right_answer: str | None = None
    score: float | None = None  # raw, before any calibration: what a calibration is made of
    probability: float | None = None  # as the calibration said then
    calibration: str | None = None  # id of that calibration
    model: str = ""  # whose local answer it was
    by: str = ""  # the target's name, where one said it


class Feedback(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody said of a local answer. Of each request and origin the last one holds."""

    id: str  # UUIDv7
    request_id: str
    task: str | None
    origin: FeedbackOrigin
    verdict: Verdict
    right: bool | None  # whether the local answer was right; None: nobody knows
    served: bool  # the local answer was given as the answer, not as a draft
    propensity: float | None  # chance with which this answer was drawn to be judged, (0, 1]; None: it was chosen
    created_at_ms: int
    said: Said = Said()
