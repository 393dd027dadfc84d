"""One [[routing.rules]] table. The field descriptions are the configuration reference."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from agent.types import EgressPolicy, FailureKind, Handoff, RouteMode

Texts = Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...], Meta(max_length=1000)]


class TopicSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a taught task of this device says of the text."""

    task: Annotated[str, Meta(min_length=1, description="A task of labels with a head (`outrider tasks teach`).")]
    labels: Annotated[tuple[str, ...], Meta(min_length=1, description="Its labels for which the rule holds.")]
    confidence: Annotated[float, Meta(ge=0, le=1, description="Least probability of the label.")] = 0.5
    unfamiliar: Annotated[
        bool,
        Meta(
            description="What the rule says of a text unlike all that taught the head: false, it does not hold; true, it holds."
        ),
    ] = False


class RuleSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule: what must hold of a request (all that is set; of a list any), and what is done then.

    A rule with a condition on the answer is asked after the local model; all others before it.
    In each of the two places the first rule that holds decides, and no other is asked.
    """

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", description="Name of the rule, in every trace.")]
    task: Annotated[Texts, Meta(description="Before: the request is of one of these tasks.")] = ()
    keywords: Annotated[Texts, Meta(description="Before: one of these words is in it, whatever its case.")] = ()
    regex: Annotated[
        str,
        Meta(
            max_length=1000,
            description="Before: it matches somewhere; searched for in linear time (no references back, no lookaround).",
        ),
    ] = ""
    language: Annotated[Texts, Meta(description='Before: it is in one of these languages, "de"; "unknown" too.')] = ()
    prompt_tokens_over: Annotated[int, Meta(ge=0, description="Before: it has more tokens, by its length. 0: off.")] = 0
    prompt_tokens_under: Annotated[int, Meta(ge=0, description="Before: it has fewer tokens. 0: off.")] = 0
    tools: Annotated[bool | None, Meta(description="Before: whether it brings tools that may be called.")] = None
    images: Annotated[bool | None, Meta(description="Before: whether it holds images, sound or files.")] = None
    metadata: Annotated[dict[str, str], Meta(description='Before: its metadata have these values; "*": any.')] = {}
    key: Annotated[Texts, Meta(description="Before: its caller has one of these [[keys]].")] = ()
    topic: Annotated[
        TopicSettings | None,
        Meta(description="Before: what a taught task says of it: { task, labels, confidence, unfamiliar }."),
    ] = None
    confidence_below: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None,
        Meta(description="After: the confidence is below this, or there is none."),
    ] = None
    confidence_from: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None, Meta(description="After: the confidence is at least this.")
    ] = None
    valid: Annotated[
        bool | None, Meta(description="After: whether the answer is whole and has the form that was asked for.")
    ] = None
    failure: Annotated[
        tuple[FailureKind, ...], Meta(description="After: the local model failed so: crash, timeout, busy, ...")
    ] = ()
    critical: Annotated[
        bool | None, Meta(description='After: whether the request says metadata.criticality = "high".')
    ] = None
    mode: Annotated[
        RouteMode | None,
        Meta(description="Before: who answers; a caller that named its route_mode is only made local_only by it."),
    ] = None
    then: Annotated[
        str,
        Meta(
            pattern="^(answer|escalate|uncertain)?$",
            description="After: answer (serve it), escalate (the default), uncertain (serve it as such, no row).",
        ),
    ] = ""
    targets: Annotated[
        tuple[str, ...],
        Meta(description="Who is asked, in this order: the next one where the one before has no budget or gave up."),
    ] = ()
    handoff: Annotated[Handoff | None, Meta(description="fresh, refine or verify, instead of the target's own.")] = None
    egress: Annotated[
        EgressPolicy | None, Meta(description="No looser policy for what leaves by this rule. It loosens none.")
    ] = None
    wanted_s: Annotated[
        int,
        Meta(
            ge=0,
            le=30 * 86_400,
            description="How long an answer of a target is still wanted, seconds; after that it is not sent. 0: queue.ttl_s.",
        ),
    ] = 0
    priority: Annotated[int, Meta(ge=-100, le=100, description="Place in the queue: the higher goes first.")] = 0

    @property
    def is_after(self) -> bool:
        """Whether the rule is asked once the local model has answered."""
        return bool(
            self.confidence_below is not None
            or self.confidence_from is not None
            or self.valid is not None
            or self.failure
            or self.critical is not None
            or self.then
        )
