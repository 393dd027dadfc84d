"""The values that flow through one request, in the order in which they appear.

Every value is frozen. Units are in the names (``_ms`` since the Unix epoch for a
moment, ``duration_ms`` for a span; log-probabilities are in nats). Times are passed in;
nothing in this module reads a clock.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from agent.appraisal import Appraisal, FieldConfidence
from agent.encoder import EncoderSpec
from agent.likelihoods import LabelScores
from agent.next_target import NextTarget
from agent.response_call import ResponseCall
from agent.structure import CallPiece, OutputFormat, ToolCall, Tools

Prompt = str | tuple[int, ...]
"""A text to continue, or the ids of its tokens in the local model's vocabulary."""


class RequestKind(StrEnum):
    """What a request asks for."""

    CHAT = "chat"
    COMPLETION = "completion"  # continue a text
    CLASSIFY = "classify"  # choose one of given labels


class RouteMode(StrEnum):
    """Who may answer, set by the caller or the configuration."""

    LOCAL_ONLY = "local_only"  # never escalated, whatever the confidence
    LOCAL_FIRST = "local_first"  # answered here, escalated when not sure (default)
    CLOUD_FIRST = "cloud_first"  # straight to the outbox, with a local draft meanwhile
    CLOUD_ONLY = "cloud_only"  # straight to the outbox, the local model is not asked


class OnLowConfidence(StrEnum):
    """What the caller gets at once when the local answer is not sure enough."""

    DRAFT = "draft"  # 200 with the local text, decision "queued" (default)
    WAIT = "wait"  # the call is held until the row settles or the deadline passes
    DEFER = "defer"  # 202 with a Location to ask later
    ABSTAIN = "abstain"  # a clear "uncertain"; no row is made


class EgressPolicy(StrEnum):
    """What may leave the device for one request. Each row keeps the one it was accepted under."""

    NEVER = "never"  # nothing; no outbox row is made
    REDACT = "redact"  # pseudonymised, or not sent
    APPROVE = "approve"  # pseudonymised, then a person releases each row
    ALLOW = "allow"  # sent as it is


class Handoff(StrEnum):
    """What the target is asked to do."""

    FRESH = "fresh"  # the request as it came
    REFINE = "refine"  # the request and the local draft, to be improved
    VERIFY = "verify"  # the target judges the draft; the verdict is kept as a label


class KvType(StrEnum):
    """How the keys and values of a context are kept."""

    F16 = "f16"
    Q8_0 = "q8_0"  # half the memory, a little less exact


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One chat message. ``content`` is its text; the local engine sees nothing else."""

    role: str  # system, user, assistant, tool
    content: str
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()  # of an assistant
    tool_call_id: str | None = None  # of a tool: the call that this is the result of
    parts: str = ""  # JSON of its parts as they came, where some are no text (images, audio): for a target


class NamedPrefix(msgspec.Struct, frozen=True, kw_only=True):
    """How the prompts of many requests begin: kept ready in memory, and on disk across restarts."""

    name: str  # unique
    model: str  # name in the manifest
    messages: tuple[Message, ...]  # a system prompt, examples; what comes next is a message of the user


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are drawn. ``temperature == 0`` is greedy.

    temperature 0..2, top_p (0, 1], min_p 0..1, top_k >= 1 or 0 (all), repetition_penalty
    (0, 2] over prompt and answer, frequency_penalty and presence_penalty -2..2 over the
    answer, logit_bias pairs of token id and -100..100, seed any 32-bit integer or None
    (drawn anew), max_tokens >= 0 or None (up to the end of the context), stop at most 4
    strings, top_logprobs 0..20, n answers to one prompt (each with a seed of its own), the best of
    best_of by their mean log-probability where that is more. Before
    min_tokens the model's own end is not drawn; a stop string still ends the answer.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    n: int = 1
    best_of: int = 1
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0

    @property
    def drawn(self) -> int:
        """How many answers are made."""
        return max(self.n, self.best_of)


class Thinking(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a request wants of a model that thinks before it answers. None: as it is configured."""

    enabled: bool | None = None
    budget_tokens: int | None = None  # most tokens of thought; 0: none
    effort: str | None = None  # as the caller wrote it; goes to a target
    param: str = "reasoning_effort"  # the parameter that asked for it


class ThinkingMarks(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands around the thoughts of a model."""

    open: str = "<think>"
    close: str = "</think>"
    switchable: bool = False  # its template can be told whether to think


class InferenceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A validated request, complete in itself: it can be replayed from storage."""

    id: str  # UUIDv7, sorts by arrival
    kind: RequestKind = RequestKind.CHAT
    model: str  # name in the manifest, never a silent substitute
    messages: tuple[Message, ...]  # of a completion: its prompt as one message, for a target that chats
    prompt: Prompt | None = None  # kind completion
    suffix: str = ""  # kind completion: what comes after the answer, which fills the gap
    echo: bool = False  # kind completion: the prompt is a part of the answer
    labels: tuple[str, ...] = ()  # kind classify: distinct, in the caller's order
    sampling: Sampling = Sampling()
    response_format: OutputFormat | None = None
    tools: Tools | None = None
    thinking: Thinking | None = None
    prediction: str = ""  # what the answer is expected to repeat; it makes it faster, never different
    task: str | None = None
    arm: str | None = None  # of an experiment that it is in: "experiment/arm"
    route_mode: RouteMode = RouteMode.LOCAL_FIRST
    names_route: bool = False  # its caller chose route_mode: a rule only makes it local_only
    on_low_confidence: OnLowConfidence = OnLowConfidence.DRAFT
    egress: EgressPolicy | None = None  # None: as the target's configuration says
    idempotency_key: str | None = None
    body_sha256: str = ""  # of the canonical body; the same key with another body is refused
    metadata: dict[str, str] = {}
    user: str | None = None
    safety_identifier: str | None = None  # whose it is, as ``user`` and metadata.subject are
    key: str | None = None  # name of the caller's own API key
    cache_salt: str | None = None  # only requests with the same one share what is cached of their prompts
    received_at_ms: int
    deadline_at_ms: int | None = None
    wanted_s: int = 0  # how long a late answer is still wanted; 0: as long as a row lives
    hops: int = 0  # how many Outriders this request has come through
    background: bool = False  # nobody waits: it is run after those that somebody waits for, and again after a restart
    response: ResponseCall | None = None  # of the Responses API

    @property
    def has_media(self) -> bool:
        """Whether a part of a message is no text: the local models read text only."""
        return any(message.parts for message in self.messages)


class TopToken(msgspec.Struct, frozen=True):
    """One alternative at a position."""

    id: int
    text_bytes: bytes
    logprob: float  # nats


class Token(msgspec.Struct, frozen=True, omit_defaults=True):
    """One generated token with what the unconstrained distribution said of it.

    Set by the runtime, before temperature, top_p or any other sampler acts. Of a forced token
    the figures are measured only where the caller asked for log-probabilities, else 0.
    """

    id: int
    text_bytes: bytes  # the raw piece; may be part of a UTF-8 character
    logprob: float  # nats, <= 0
    runner_up_logprob: float  # nats: the best token other than this one
    entropy: float  # nats, >= 0
    top: tuple[TopToken, ...] = ()  # only when the caller asked
    forced: bool = False  # a format or tool left no choice about these bytes: they say nothing of the model
    allowed_mass: float = 1.0  # unconstrained probability of all that was allowed here, 0..1
    forced_bytes: int = 0  # of its bytes, how many the format forced before it left a choice
    null_mass: float | None = None  # unconstrained probability of null behind those, where a value may begin; 0..1


class Delta(msgspec.Struct, frozen=True):
    """A piece of text that is final (stop strings held back, UTF-8 complete) and its tokens.

    ``text`` may be empty while a stop string or character is incomplete; then the tokens
    travel with the next delta that has text, or with the last one.
    """

    text: str
    tokens: tuple[Token, ...] = ()
    choice: int = 0  # which of the request's ``n`` answers
    thought: str = ""  # of a model that thinks before it answers; has no tokens here
    calls: tuple[CallPiece, ...] = ()


class FailureKind(StrEnum):
    """Why there is no whole local answer."""

    CRASH = "crash"  # the worker died, or could not be started
    QUARANTINED = "quarantined"  # the model crashed its worker too often
    TIMEOUT = "timeout"  # the deadline passed
    CONTEXT_OVERFLOW = "context_overflow"  # the prompt does not fit
    BUSY = "busy"  # the waiting line is full
    CANCELLED = "cancelled"  # the client went away
    REJECTED = "rejected"  # the runtime refused the input (template, token)


class Failure(msgspec.Struct, frozen=True):
    """A failure with its reason in words; ``message`` never holds prompt text."""

    kind: FailureKind
    message: str
    param: str = "messages"  # the parameter that is at fault, where one is


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """A further answer to the same prompt."""

    text: str
    finish_reason: str | None
    tokens: tuple[Token, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    incomplete: bool = False
    fields: dict[str, FieldConfidence] = {}  # by JSON pointer
    end: Token | None = None
    thoughts: str = ""


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """What the local model did. On a failure ``text`` is what there was until then."""

    text: str = ""
    finish_reason: str | None = None  # stop, length, tool_calls; None on failure
    tokens: tuple[Token, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    incomplete: bool = False  # cut off before it was what its format or tools ask for
    fields: dict[str, FieldConfidence] = {}  # of an answer in JSON or of calls, by JSON pointer
    thoughts: str = ""  # what a model that thinks wrote before its answer
    others: tuple[Choice, ...] = ()  # the answers after the first, where ``n`` asked for them
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0  # of all answers, thoughts included
    thought_tokens: int = 0  # of all answers
    accepted_tokens: int = 0  # of the output, those that were guessed before they were drawn
    rejected_tokens: int = 0  # guessed and computed for nothing
    first_token_ms: float | None = None  # span from acceptance by the engine
    duration_ms: float = 0.0
    model: str = ""
    model_digest: str = ""
    runtime: str = ""
    end: Token | None = None  # by which the model ended, where no rule ended the answer
    prompt_logprobs: tuple[Token, ...] = ()  # of an echoed prompt; the first has none and carries 0
    label_scores: LabelScores | None = None  # kind classify
    appraisal: Appraisal | None = None  # of a taught task's written answer
    failure: Failure | None = None


class Confidence(msgspec.Struct, frozen=True, kw_only=True):
    """How sure. ``score is None`` means "no signal", which is never "sure"."""

    score: float | None  # 0..1
    calibrated: bool = False
    raw: float | None = None
    estimator: str  # name@version
    calibration_id: str | None = None
    guarantee: str | None = None  # of a task's answer: what is promised in a few words, or "none"
    signals: dict[str, float] = {}
    fault: str = ""  # why no answer like this is served, whatever its tokens say


class Action(StrEnum):
    """What was decided. One enum, in the database and the API."""

    ANSWERED = "answered"
    QUEUED = "queued"
    UNCERTAIN = "uncertain"
    REFUSED = "refused"


class Reason(StrEnum):
    """Why it was decided so."""

    CONFIDENT = "confident"
    LOW_CONFIDENCE = "low_confidence"
    NO_SIGNAL = "no_signal"
    RULE = "rule"  # a routing rule says so
    LOCAL_ONLY = "local_only"  # not sure, but the caller forbids any target
    EGRESS_NEVER = "egress_never"  # not sure, but nothing may leave
    ABSTAINED = "abstained"  # not sure, the caller wants no row
    ROUTE = "route"  # the route asks for a target (cloud_first, cloud_only)
    UNSUPPORTED_MEDIA = "unsupported_media"  # images, audio or video, which no local model reads
    CRASH = "crash"
    QUARANTINED = "quarantined"
    TIMEOUT = "timeout"
    CONTEXT_OVERFLOW = "context_overflow"
    BUSY = "busy"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    NO_TARGET = "no_target"  # a row that waits for a target and a person
    QUEUE_FULL = "queue_full"
    DISK_FULL = "disk_full"  # not sure, and nothing can be stored


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict, explainable: rule, numbers and trace stay with the request."""

    action: Action
    reason: Reason
    rule_id: str
    threshold: float | None = None
    target: str | None = None
    target_fingerprint: str | None = None  # of the target as it was configured then
    egress: EgressPolicy | None = None  # the policy the row is accepted under
    handoff: Handoff = Handoff.FRESH
    fallbacks: tuple[NextTarget, ...] = ()
    wanted_s: int = 0  # how long a target's answer is still wanted; 0: as long as a row lives
    priority: int = 0
    propensity: float | None = None  # chance with which this served answer was drawn to be checked; None: it was not
    trace: tuple[str, ...] = ()


class AdapterFile(msgspec.Struct, frozen=True, kw_only=True):
    """A verified LoRA adapter (GGUF) for one base model."""

    path: str
    sha256: str  # of the file
    scale: float  # factor of its effect


class ModelFormat(StrEnum):
    """What the files of a model are, and so which runtime reads them."""

    GGUF = "gguf"
    CHECKPOINT = "checkpoint"  # Hugging Face safetensors: a source of others, never run
    ONNX_GENERATION = "onnx_generation"
    ONNX_ENCODER = "onnx_encoder"

    @property
    def runtime(self) -> str:
        """The library that runs such a model; "" for one that is only made into others."""
        if self is ModelFormat.CHECKPOINT:
            return ""
        return "llama.cpp" if self is ModelFormat.GGUF else "onnxruntime"


class ModelFile(msgspec.Struct, frozen=True, kw_only=True):
    """A verified model and how to speak to it."""

    name: str
    path: str  # of the one file of a GGUF; of the folder with the files of any other format
    format: ModelFormat = ModelFormat.GGUF
    sha256: str  # the model digest: what a calibration and a quarantine are keyed by; covers the adapter
    context_tokens: int  # most tokens the model was made for
    chat_template: str | None = None  # overrides the template in the file
    system_prompt: str | None = None  # used when a request has none; None: what the template does by itself
    adapter: AdapterFile | None = None
    draft: ModelFile | None = None  # a smaller model of the same tokens that guesses what this one will say
    thinking: ThinkingMarks | None = None  # None: those that its template writes, if it does
    encoder: EncoderSpec | None = None  # None: as its files say
