"""Rules before and after generation. Pure: no clock, no input or output, no framework."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec

from agent.errors import InvalidRequest
from agent.records import Accepted
from agent.strictness import stricter
from agent.types import (
    Action,
    Confidence,
    Decision,
    EgressPolicy,
    FailureKind,
    Generation,
    Handoff,
    InferenceRequest,
    OnLowConfidence,
    Reason,
    RouteMode,
)

# A failure that a bigger model can make good. The others are the caller's to repeat or to
# correct: load and slowness must not turn into spending and leaking.
_ESCALATED_FAILURES = {
    FailureKind.CRASH: Reason.CRASH,
    FailureKind.QUARANTINED: Reason.QUARANTINED,
    FailureKind.CONTEXT_OVERFLOW: Reason.CONTEXT_OVERFLOW,
}


class TargetRule(msgspec.Struct, frozen=True):
    """What routing needs to know of a target."""

    name: str
    egress: EgressPolicy
    handoff: Handoff = Handoff.FRESH
    fingerprint: str = ""  # of its address and model


class Policy(msgspec.Struct, frozen=True):
    """What the configuration says, at the moment of the request."""

    threshold: float  # infinite: nothing is served, as a calibration may say
    targets: tuple[TargetRule, ...] = ()
    ceiling: EgressPolicy = EgressPolicy.ALLOW  # of the whole daemon: nothing leaves under a looser policy


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict before generation."""

    use_local: bool
    straight: bool  # goes to the outbox whatever the local model says
    media: bool = False  # the local model cannot read it
    egress: EgressPolicy  # the policy that a row would be accepted under
    target: str | None
    target_fingerprint: str | None
    anyone: bool  # there is, or was, somebody to ask: a failure may wait in a row
    handoff: Handoff
    trace: tuple[str, ...]

    @property
    def accepted(self) -> Accepted:
        """What is stored with the request before any work."""
        return Accepted(egress=self.egress, target=self.target, target_fingerprint=self.target_fingerprint)


def before(request: InferenceRequest, policy: Policy) -> Route:
    """Decide who is asked. Raises InvalidRequest for a contradiction."""
    target = next((t for t in policy.targets if t.egress is not EgressPolicy.NEVER), None)
    # Without any target a row may still wait, for a person or for later; not where all are "never".
    nobody = EgressPolicy.NEVER if policy.targets else EgressPolicy.APPROVE
    configured = target.egress if target else nobody
    egress = stricter(configured, request.egress, policy.ceiling)
    mode = request.route_mode
    if mode is RouteMode.CLOUD_ONLY and egress is EgressPolicy.NEVER:
        whose = "of every configured target"
        if request.egress is EgressPolicy.NEVER:
            whose = "of the request"
        elif policy.ceiling is EgressPolicy.NEVER:
            whose = "of the whole daemon, egress.policy"
        raise InvalidRequest(
            f'route_mode "cloud_only" and egress "never" ({whose}) contradict each other: change one',
            param="route_mode",
            code="contradiction",
        )
    straight = mode in {RouteMode.CLOUD_FIRST, RouteMode.CLOUD_ONLY} and egress is not EgressPolicy.NEVER
    if request.has_media and not straight:
        _check_media(request, target, egress)
        straight = True
    name = target.name if target else None
    return Route(
        use_local=mode is not RouteMode.CLOUD_ONLY and not request.has_media,
        straight=straight,
        media=request.has_media,
        egress=egress,
        target=name,
        target_fingerprint=target.fingerprint if target else None,
        anyone=target is not None,
        handoff=target.handoff if target else Handoff.FRESH,
        trace=(f"route_mode is {mode}", f"egress is {egress}", f"target is {name or 'not configured'}"),
    )


def _check_media(request: InferenceRequest, target: TargetRule | None, egress: EgressPolicy) -> None:
    """Raise InvalidRequest unless somebody else may be asked to read images, audio or video."""
    if not may_leave(request, egress):
        why = "the request may not leave this device"
    elif target is None:
        why = "no target is configured that could"
    elif request.on_low_confidence is OnLowConfidence.ABSTAIN:
        why = "the request asks to abstain"
    else:
        return
    raise InvalidRequest(
        f"the local model reads text only, not images, audio, video or files, and {why}: send the text alone, "
        "or let a target answer (route_mode, egress, [[targets]])",
        param="messages",
        code=Reason.UNSUPPORTED_MEDIA.value,
    )


def resumed(request: InferenceRequest, accepted: Accepted, policy: Policy) -> Route:
    """Return the route of a request that an earlier life accepted: the stricter of then and now.

    What has no target from then, or whose target is not the same now, waits for a person.
    Raises InvalidRequest as ``before`` does.
    """
    now = before(request, policy)
    egress = stricter(accepted.egress, _egress_of(accepted, policy), request.egress, policy.ceiling)
    return msgspec.structs.replace(
        now,
        straight=now.straight and egress is not EgressPolicy.NEVER,
        egress=egress,
        target=accepted.target,
        target_fingerprint=accepted.target_fingerprint,
        anyone=now.anyone or accepted.target is not None,
        trace=(*now.trace, f"accepted for {accepted.target or 'no target'} under {accepted.egress}"),
    )


def _egress_of(accepted: Accepted, policy: Policy) -> EgressPolicy:
    """Return what the policy says now of the target that a request was accepted for."""
    if policy.targets and all(target.egress is EgressPolicy.NEVER for target in policy.targets):
        return EgressPolicy.NEVER
    for target in policy.targets:
        if (target.name, target.fingerprint) == (accepted.target, accepted.target_fingerprint):
            return target.egress
    return EgressPolicy.APPROVE


def after(
    request: InferenceRequest,
    route: Route,
    generation: Generation | None,
    confidence: Confidence | None,
    policy: Policy,
) -> Decision:
    """Decide what becomes of the request. Total: every input gives one decision."""
    base = Decision(
        action=Action.REFUSED,
        reason=Reason.NO_SIGNAL,
        rule_id="",
        threshold=policy.threshold if math.isfinite(policy.threshold) else None,
        target=route.target,
        target_fingerprint=route.target_fingerprint,
        egress=route.egress,
        handoff=route.handoff if generation and not generation.failure else Handoff.FRESH,
    )

    def decide(action: Action, reason: Reason, rule_id: str, why: str) -> Decision:
        trace = (*route.trace, f"{rule_id}: {why}")
        return msgspec.structs.replace(base, action=action, reason=reason, rule_id=rule_id, trace=trace)

    failure = generation.failure if generation else None
    if failure and failure.kind is FailureKind.CANCELLED:
        return decide(Action.REFUSED, Reason.CANCELLED, "failure", "the caller went away")
    if route.straight and route.media:
        return decide(Action.QUEUED, Reason.UNSUPPORTED_MEDIA, "media", "the local model reads text only")
    if route.straight:
        return decide(Action.QUEUED, Reason.ROUTE, "route", f"{request.route_mode} asks for a target")
    if failure:
        return _after_failure(request, route, failure.kind, decide)
    if generation is None:  # no local answer, and what it was meant for is closed by now
        reason = Reason.UNSUPPORTED_MEDIA if route.media else Reason.EGRESS_NEVER
        return decide(Action.REFUSED, reason, "route", "nobody may be asked, and there is no local answer")
    score = confidence.score if confidence else None
    if score is not None and score >= policy.threshold:
        return decide(Action.ANSWERED, Reason.CONFIDENT, "threshold", f"{score:.3f} >= {policy.threshold:g}")
    if score is None:
        reason, why = Reason.NO_SIGNAL, "no signal counts as not sure"
    else:
        reason, why = Reason.LOW_CONFIDENCE, f"{score:.3f} < {policy.threshold:g}"
    if request.route_mode is RouteMode.LOCAL_ONLY:
        return decide(Action.UNCERTAIN, Reason.LOCAL_ONLY, "route", f"{why}; the request is local_only")
    if route.egress is EgressPolicy.NEVER:
        return decide(Action.UNCERTAIN, Reason.EGRESS_NEVER, "egress", f"{why}; egress is never")
    if request.on_low_confidence is OnLowConfidence.ABSTAIN:
        return decide(Action.UNCERTAIN, Reason.ABSTAINED, "caller", f"{why}; the caller asked to abstain")
    return decide(Action.QUEUED, reason, "threshold", why)


def _after_failure(
    request: InferenceRequest,
    route: Route,
    kind: FailureKind,
    decide: Callable[[Action, Reason, str, str], Decision],
) -> Decision:
    reason = _ESCALATED_FAILURES.get(kind)
    if reason is None:
        return decide(Action.REFUSED, Reason(kind.value), "failure", f"{kind} is not escalated")
    if not route.anyone or not may_leave(request, route.egress) or request.on_low_confidence is OnLowConfidence.ABSTAIN:
        return decide(Action.REFUSED, reason, "failure", f"{kind}, and nobody else may be asked")
    return decide(Action.QUEUED, reason, "failure", f"{kind} is a reason to escalate")


def may_leave(request: InferenceRequest, egress: EgressPolicy) -> bool:
    """Whether any row may be made for this request."""
    return (
        egress is not EgressPolicy.NEVER
        and request.egress is not EgressPolicy.NEVER
        and request.route_mode is not RouteMode.LOCAL_ONLY
    )
