"""Rules before and after generation. Pure: no clock, no input or output, no framework."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec

from agent.errors import InvalidRequest
from agent.next_target import NextTarget
from agent.records import Accepted
from agent.rule_settings import RuleSettings
from agent.rules import NO_FACTS, NO_RULES, Facts, Outcome, Rulebook
from agent.strictness import stricter
from agent.token_estimate import input_tokens
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

ANSWER, ESCALATE, UNCERTAIN = "answer", "escalate", "uncertain"  # what a rule on the answer says

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
    images: EgressPolicy = EgressPolicy.APPROVE  # the loosest policy for requests that hold images, sound or files
    max_input_tokens: int = 0  # longer requests are not for it; 0: none is too long


class Policy(msgspec.Struct, frozen=True):
    """What the configuration says, at the moment of the request."""

    threshold: float  # infinite: nothing is served, as a calibration may say
    targets: tuple[TargetRule, ...] = ()
    ceiling: EgressPolicy = EgressPolicy.ALLOW  # of the whole daemon: nothing leaves under a looser policy
    rules: Rulebook = NO_RULES


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict before generation."""

    mode: RouteMode  # as the request says, or the rule
    use_local: bool
    straight: bool  # goes to the outbox whatever the local model says
    media: bool = False  # the local model cannot read it
    egress: EgressPolicy  # the policy that a row would be accepted under
    target: str | None
    target_fingerprint: str | None
    anyone: bool  # there is, or was, somebody to ask: a failure may wait in a row
    handoff: Handoff
    fallbacks: tuple[NextTarget, ...] = ()  # who is asked after the target, in this order
    rule: RuleSettings | None = None  # the first that holds
    facts: Facts = NO_FACTS
    trace: tuple[str, ...]

    @property
    def accepted(self) -> Accepted:
        """What is stored with the request before any work: what may leave, should it be cut short."""
        egress = EgressPolicy.NEVER if self.mode is RouteMode.LOCAL_ONLY else self.egress
        return Accepted(egress=egress, target=self.target, target_fingerprint=self.target_fingerprint)


def before(request: InferenceRequest, policy: Policy, facts: Facts = NO_FACTS) -> Route:
    """Decide who is asked: the first rule that holds, else what the request says. Raises InvalidRequest for a contradiction.

    A rule never loosens what may leave: of its policy and all others the strictest holds, and what
    its caller keeps local stays so.
    """
    rule = policy.rules.before(request, facts)
    mode = _mode(request, rule)
    chosen = _choose(policy, rule, request)
    target = chosen[0] if chosen else None
    told = stricter(_configured(policy, rule, target), request.egress, policy.ceiling, rule.egress if rule else None)
    egress = stricter(told, target.images) if target and request.has_media else told
    if mode is RouteMode.CLOUD_ONLY and egress is EgressPolicy.NEVER:
        whose = "of every configured target"
        if request.egress is EgressPolicy.NEVER:
            whose = "of the request"
        elif policy.ceiling is EgressPolicy.NEVER:
            whose = "of the whole daemon, egress.policy"
        elif rule is not None and rule.egress is EgressPolicy.NEVER:
            whose = f"of rule {rule.name}"
        raise InvalidRequest(
            f'route_mode "cloud_only" and egress "never" ({whose}) contradict each other: change one',
            param="route_mode",
            code="contradiction",
        )
    straight = mode in {RouteMode.CLOUD_FIRST, RouteMode.CLOUD_ONLY} and egress is not EgressPolicy.NEVER
    if request.has_media and not straight:
        _check_media(request, mode, target, egress)
        straight = True
    name = target.name if target else None
    by_rule = () if rule is None else (f"rule {rule.name} holds before the local model",)
    return Route(
        mode=mode,
        use_local=mode is not RouteMode.CLOUD_ONLY and not request.has_media,
        straight=straight,
        media=request.has_media,
        egress=egress,
        target=name,
        target_fingerprint=target.fingerprint if target else None,
        anyone=target is not None,
        handoff=_handoff(rule, target),
        fallbacks=tuple(NextTarget(one.name, one.fingerprint) for one in chosen[1:]),
        rule=rule,
        facts=facts,
        trace=(*by_rule, f"route_mode is {mode}", f"egress is {egress}", f"target is {name or 'not configured'}"),
    )


def _mode(request: InferenceRequest, rule: RuleSettings | None) -> RouteMode:
    """Return who answers: a rule says it for those that did not, and keeps anybody local."""
    if rule is None or rule.mode is None:
        return request.route_mode
    chosen = request.names_route or request.arm is not None
    return request.route_mode if chosen and rule.mode is not RouteMode.LOCAL_ONLY else rule.mode


def _choose(policy: Policy, rule: RuleSettings | None, request: InferenceRequest) -> tuple[TargetRule, ...]:
    """Return who may be asked, in order: those that the rule names, else the first that may receive."""
    able = [
        one
        for one in policy.targets
        if one.egress is not EgressPolicy.NEVER
        and not (one.max_input_tokens and input_tokens(request) > one.max_input_tokens)
    ]
    if rule is None or not rule.targets:
        return tuple(able[:1])
    by_name = {one.name: one for one in able}
    return tuple(by_name[name] for name in dict.fromkeys(rule.targets) if name in by_name)


def _configured(policy: Policy, rule: RuleSettings | None, target: TargetRule | None) -> EgressPolicy:
    """Return what the configuration says of the target. Without one a row may still wait, for a person or for later."""
    if target is not None:
        return target.egress
    named = [one for one in policy.targets if rule is None or not rule.targets or one.name in rule.targets]
    closed = bool(named) and all(one.egress is EgressPolicy.NEVER for one in named)
    return EgressPolicy.NEVER if closed else EgressPolicy.APPROVE


def _handoff(rule: RuleSettings | None, target: TargetRule | None) -> Handoff:
    if rule is not None and rule.handoff is not None:
        return rule.handoff
    return target.handoff if target else Handoff.FRESH


def _check_media(request: InferenceRequest, mode: RouteMode, target: TargetRule | None, egress: EgressPolicy) -> None:
    """Raise InvalidRequest unless somebody else may be asked to read images, audio or video."""
    if not may_leave(request, mode, egress):
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


def resumed(request: InferenceRequest, accepted: Accepted, policy: Policy, facts: Facts | None = None) -> Route:
    """Return the route of a request that an earlier life accepted: the stricter of then and now.

    What has no target from then, or whose target is not the same now, waits for a person.
    Raises InvalidRequest as ``before`` does.
    """
    now = before(request, policy, policy.rules.look(request) if facts is None else facts)
    egress = stricter(accepted.egress, _egress_of(accepted, policy), request.egress, policy.ceiling)
    return msgspec.structs.replace(
        now,
        straight=now.straight and egress is not EgressPolicy.NEVER,
        egress=egress,
        target=accepted.target,
        target_fingerprint=accepted.target_fingerprint,
        fallbacks=tuple(one for one in now.fallbacks if one.name != accepted.target),
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
    failure = generation.failure if generation else None
    score = confidence.score if confidence else None
    rule = None
    if generation is not None and not route.straight:  # else it is decided already
        rule = policy.rules.after(request, route.facts, Outcome(score, generation))
        route = _as_rule(request, route, rule, policy)
    wishes = [request.wanted_s, *(one.wanted_s for one in (rule, route.rule) if one is not None)]
    wanted = min(filter(None, wishes), default=0)
    base = Decision(
        action=Action.REFUSED,
        reason=Reason.NO_SIGNAL,
        rule_id="",
        threshold=policy.threshold if math.isfinite(policy.threshold) else None,
        target=route.target,
        target_fingerprint=route.target_fingerprint,
        egress=route.egress,
        handoff=route.handoff if generation and not generation.failure else Handoff.FRESH,
        fallbacks=route.fallbacks,
        wanted_s=wanted,
        priority=next((one.priority for one in (rule, route.rule) if one is not None and one.priority), 0),
    )

    def decide(action: Action, reason: Reason, rule_id: str, why: str) -> Decision:
        trace = (*route.trace, f"{rule_id}: {why}")
        return msgspec.structs.replace(base, action=action, reason=reason, rule_id=rule_id, trace=trace)

    if failure and failure.kind is FailureKind.CANCELLED:
        return decide(Action.REFUSED, Reason.CANCELLED, "failure", "the caller went away")
    if route.straight and route.media:
        return decide(Action.QUEUED, Reason.UNSUPPORTED_MEDIA, "media", "the local model reads text only")
    if route.straight:
        by = "route" if route.rule is None or route.rule.mode is not route.mode else route.rule.name
        return decide(Action.QUEUED, Reason.ROUTE, by, f"{route.mode} asks for a target")
    if failure:
        return _after_failure(request, route, failure.kind, rule, decide)
    if generation is None:  # no local answer, and what it was meant for is closed by now
        reason = Reason.UNSUPPORTED_MEDIA if route.media else Reason.EGRESS_NEVER
        return decide(Action.REFUSED, reason, "route", "nobody may be asked, and there is no local answer")
    if rule is not None and rule.then == ANSWER:
        return decide(Action.ANSWERED, Reason.RULE, rule.name, "the rule serves it")
    if rule is not None and rule.then == UNCERTAIN:
        return decide(Action.UNCERTAIN, Reason.RULE, rule.name, "the rule serves it as uncertain")
    if rule is not None:
        reason, why, by = Reason.RULE, f"rule {rule.name} escalates", rule.name
        return _escalated(request, route, reason, why, by, decide)
    if score is not None and score >= policy.threshold:
        return decide(Action.ANSWERED, Reason.CONFIDENT, "threshold", f"{score:.3f} >= {policy.threshold:g}")
    if score is None:
        reason, why = Reason.NO_SIGNAL, "no signal counts as not sure"
    else:
        reason, why = Reason.LOW_CONFIDENCE, f"{score:.3f} < {policy.threshold:g}"
    return _escalated(request, route, reason, why, "threshold", decide)


_Decide = Callable[[Action, Reason, str, str], Decision]


def _escalated(request: InferenceRequest, route: Route, reason: Reason, why: str, by: str, decide: _Decide) -> Decision:
    """Decide to ask somebody bigger, or to serve the answer as uncertain where nobody may be asked."""
    if route.mode is RouteMode.LOCAL_ONLY or request.route_mode is RouteMode.LOCAL_ONLY:
        return decide(Action.UNCERTAIN, Reason.LOCAL_ONLY, "route", f"{why}; the request is local_only")
    if route.egress is EgressPolicy.NEVER:
        return decide(Action.UNCERTAIN, Reason.EGRESS_NEVER, "egress", f"{why}; egress is never")
    if request.on_low_confidence is OnLowConfidence.ABSTAIN:
        return decide(Action.UNCERTAIN, Reason.ABSTAINED, "caller", f"{why}; the caller asked to abstain")
    return decide(Action.QUEUED, reason, by, why)


def _as_rule(request: InferenceRequest, route: Route, rule: RuleSettings | None, policy: Policy) -> Route:
    """Return the route as a rule on the answer has it: other targets, under no looser policy than it came in by."""
    if rule is None:
        return route
    trace = (*route.trace, f"rule {rule.name} holds after the local model")
    if rule.targets:
        chosen = _choose(policy, rule, request)
        target = chosen[0] if chosen else None
        route = msgspec.structs.replace(
            route,
            egress=stricter(route.egress, _configured(policy, rule, target)),
            target=target.name if target else None,
            target_fingerprint=target.fingerprint if target else None,
            anyone=target is not None,
            fallbacks=tuple(NextTarget(one.name, one.fingerprint) for one in chosen[1:]),
            handoff=_handoff(rule, target),
        )
        trace = (*trace, f"target is {route.target or 'not configured'}")
    egress = stricter(route.egress, rule.egress)
    return msgspec.structs.replace(
        route,
        egress=egress,
        straight=route.straight and egress is not EgressPolicy.NEVER,
        handoff=rule.handoff or route.handoff,
        trace=trace,
    )


def _after_failure(
    request: InferenceRequest, route: Route, kind: FailureKind, rule: RuleSettings | None, decide: _Decide
) -> Decision:
    reason = _ESCALATED_FAILURES.get(kind)
    if reason is None and rule is not None and rule.failure and rule.then in {"", ESCALATE}:
        reason = Reason(kind.value)  # the rule asks for it by name
    if reason is None:
        return decide(Action.REFUSED, Reason(kind.value), "failure", f"{kind} is not escalated")
    closed = not may_leave(request, route.mode, route.egress) or request.on_low_confidence is OnLowConfidence.ABSTAIN
    if not route.anyone or closed or (rule is not None and rule.then in {ANSWER, UNCERTAIN}):
        return decide(Action.REFUSED, reason, "failure", f"{kind}, and nobody else may be asked")
    return decide(Action.QUEUED, reason, rule.name if rule else "failure", f"{kind} is a reason to escalate")


def may_leave(request: InferenceRequest, mode: RouteMode, egress: EgressPolicy) -> bool:
    """Whether any row may be made for this request."""
    return (
        egress is not EgressPolicy.NEVER
        and request.egress is not EgressPolicy.NEVER
        and RouteMode.LOCAL_ONLY not in {mode, request.route_mode}
    )
