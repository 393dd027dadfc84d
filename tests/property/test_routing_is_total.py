"""Routing decides every input, and never against the caller's policy."""

import itertools

import msgspec
import pytest

from agent import routing
from agent.errors import InvalidRequest
from agent.types import (
    Action,
    Confidence,
    EgressPolicy,
    Failure,
    FailureKind,
    Generation,
    InferenceRequest,
    Message,
    OnLowConfidence,
    Reason,
    RouteMode,
)


def request(**fields):
    return InferenceRequest(id="1", model="m", messages=(Message("user", "hi"),), received_at_ms=0, **fields)


def target(egress):
    return routing.TargetRule("main", egress)


def confidence(score):
    return Confidence(score=score, estimator="lowest_tenth@1")


TARGETS = [(), *((target(e),) for e in (EgressPolicy.ALLOW, EgressPolicy.APPROVE, EgressPolicy.NEVER))]
EGRESS = [None, EgressPolicy.ALLOW, EgressPolicy.APPROVE, EgressPolicy.NEVER]
RESULTS = [(None, None), *((k, None) for k in FailureKind), ("ok", None), ("ok", 0.2), ("ok", 0.5), ("ok", 1.0)]


def decide(req, targets, kind, score):
    policy = routing.Policy(threshold=0.5, targets=targets)
    route = routing.before(req, policy)
    generation = None
    if route.use_local:
        failure = Failure(kind, "why") if isinstance(kind, FailureKind) else None
        generation = Generation(text="t", failure=failure)
    return route, routing.after(req, route, generation, confidence(score), policy)


@pytest.mark.parametrize("ceiling", [EgressPolicy.NEVER, EgressPolicy.APPROVE])
def test_nothing_is_queued_under_a_looser_policy_than_that_of_the_whole_device(ceiling):
    for mode, targets, egress in itertools.product(RouteMode, TARGETS, EGRESS):
        policy = routing.Policy(threshold=0.5, targets=targets, ceiling=ceiling)
        try:
            route = routing.before(request(route_mode=mode, egress=egress), policy)
        except InvalidRequest:
            assert ceiling is EgressPolicy.NEVER or EgressPolicy.NEVER in {egress, *(one.egress for one in targets)}
            continue
        decision = routing.after(request(route_mode=mode, egress=egress), route, Generation(), confidence(0.1), policy)
        assert decision.egress in {ceiling, EgressPolicy.NEVER}
        assert decision.action is not Action.QUEUED or ceiling is not EgressPolicy.NEVER


@pytest.mark.parametrize("mode", RouteMode)
@pytest.mark.parametrize("wish", OnLowConfidence)
def test_every_combination_gets_one_decision_within_policy(mode, wish):
    seen = set()
    for targets, egress, (kind, score) in itertools.product(TARGETS, EGRESS, RESULTS):
        req = request(route_mode=mode, on_low_confidence=wish, egress=egress)
        try:
            route, decision = decide(req, targets, kind, score)
        except InvalidRequest:
            assert mode is RouteMode.CLOUD_ONLY
            assert EgressPolicy.NEVER in (egress, *(t.egress for t in targets))
            continue
        seen.add(decision.action)
        assert decision.rule_id
        assert decision.trace
        if decision.action is Action.QUEUED:
            assert mode is not RouteMode.LOCAL_ONLY
            assert egress is not EgressPolicy.NEVER
            assert decision.egress in (EgressPolicy.ALLOW, EgressPolicy.APPROVE)
            if not targets:
                assert decision.target is None
                assert decision.egress is EgressPolicy.APPROVE
            assert not targets or any(t.egress is not EgressPolicy.NEVER for t in targets)
            if egress is EgressPolicy.APPROVE:
                assert decision.egress is EgressPolicy.APPROVE
        if decision.action is Action.ANSWERED:
            assert score is not None
            assert score >= 0.5
        if kind is FailureKind.BUSY and not route.straight:
            assert decision.action is Action.REFUSED
    assert seen


@pytest.mark.parametrize(
    ("fields", "action", "reason"),
    [
        ({}, Action.QUEUED, Reason.LOW_CONFIDENCE),
        ({"route_mode": RouteMode.LOCAL_ONLY}, Action.UNCERTAIN, Reason.LOCAL_ONLY),
        ({"egress": EgressPolicy.NEVER}, Action.UNCERTAIN, Reason.EGRESS_NEVER),
        ({"on_low_confidence": OnLowConfidence.ABSTAIN}, Action.UNCERTAIN, Reason.ABSTAINED),
    ],
)
def test_not_sure(fields, action, reason):
    _, decision = decide(request(**fields), (target(EgressPolicy.ALLOW),), "ok", 0.2)
    assert (decision.action, decision.reason) == (action, reason)


NEVER = (target(EgressPolicy.NEVER), target(EgressPolicy.NEVER))


@pytest.mark.parametrize(
    ("mode", "kind", "score", "outcome"),
    [
        (RouteMode.LOCAL_FIRST, "ok", 0.2, (Action.UNCERTAIN, Reason.EGRESS_NEVER)),
        (RouteMode.CLOUD_FIRST, "ok", 0.2, (Action.UNCERTAIN, Reason.EGRESS_NEVER)),
        (RouteMode.CLOUD_FIRST, "ok", 0.9, (Action.ANSWERED, Reason.CONFIDENT)),
        (RouteMode.LOCAL_FIRST, FailureKind.CRASH, None, (Action.REFUSED, Reason.CRASH)),
    ],
)
def test_where_every_target_is_never_no_row_is_made(mode, kind, score, outcome):
    _, decision = decide(request(route_mode=mode), NEVER, kind, score)
    assert (decision.action, decision.reason) == outcome


def test_cloud_only_where_every_target_is_never_is_refused_by_its_reason():
    with pytest.raises(InvalidRequest, match="every configured target"):
        routing.before(request(route_mode=RouteMode.CLOUD_ONLY), routing.Policy(0.5, NEVER))


def test_what_was_accepted_is_only_ever_tightened():
    fingerprints = ("f1", "f2")
    rules = [routing.TargetRule("main", e, fingerprint=f) for e in EgressPolicy for f in fingerprints]
    policies = [routing.Policy(0.5, targets) for targets in [(), *((rule,) for rule in rules)]]
    for then, now, egress, mode in itertools.product(policies, policies, EGRESS, RouteMode):
        req = request(route_mode=mode, egress=egress)
        try:
            accepted = routing.before(req, then).accepted
            route = routing.resumed(req, accepted, now)
        except InvalidRequest:
            continue
        assert routing.stricter(route.egress, accepted.egress) is route.egress
        assert (route.target, route.target_fingerprint) == (accepted.target, accepted.target_fingerprint)
        if route.egress is EgressPolicy.ALLOW and route.target is not None:
            assert then == now


def test_no_signal_is_not_sure():
    _, decision = decide(request(), (target(EgressPolicy.ALLOW),), "ok", None)
    assert (decision.action, decision.reason) == (Action.QUEUED, Reason.NO_SIGNAL)


def test_overflow_escalates_only_where_somebody_may_be_asked():
    _, decision = decide(request(), (target(EgressPolicy.ALLOW),), FailureKind.CONTEXT_OVERFLOW, None)
    assert decision.action is Action.QUEUED
    _, decision = decide(request(), (), FailureKind.CONTEXT_OVERFLOW, None)
    assert decision.action is Action.REFUSED


def test_strictness_is_an_order():
    order = [EgressPolicy.ALLOW, EgressPolicy.REDACT, EgressPolicy.APPROVE, EgressPolicy.NEVER]
    for one, other in itertools.product(order, order):
        assert routing.stricter(one, other) is max(one, other, key=order.index)


def test_the_policy_is_data():
    policy = routing.Policy(0.5, (target(EgressPolicy.ALLOW),))
    told = msgspec.to_builtins(policy, enc_hook=lambda rulebook: rulebook.settings)
    assert told.pop("rules") == ()
    assert msgspec.convert(told, routing.Policy) == policy


def test_media_goes_to_a_target_or_is_refused_and_never_to_the_local_model():
    picture = (Message("user", "what is it?", parts='[{"type": "image_url"}]'),)
    queued, codes = set(), set()
    for mode, wish, targets, egress in itertools.product(RouteMode, OnLowConfidence, TARGETS, EGRESS):
        asked = msgspec.structs.replace(
            request(route_mode=mode, on_low_confidence=wish, egress=egress), messages=picture
        )
        try:
            route, decision = decide(asked, targets, "ok", 1.0)
        except InvalidRequest as error:
            codes.add(error.code)
            continue
        assert not route.use_local
        assert (decision.action, decision.reason) == (Action.QUEUED, Reason.UNSUPPORTED_MEDIA)
        assert route.egress is not EgressPolicy.NEVER
        queued.add((mode, bool(targets)))
    assert codes == {"unsupported_media", "contradiction"}
    # Without a target a row waits for a person only where the caller wants a target whatever the model says.
    assert (RouteMode.LOCAL_FIRST, True) in queued
    assert (RouteMode.LOCAL_FIRST, False) not in queued
    assert not {mode for mode, _ in queued} & {RouteMode.LOCAL_ONLY}


@pytest.mark.parametrize("media", [True, False])
def test_without_a_local_answer_and_with_nobody_to_ask_it_is_refused(media):
    closed = routing.Policy(threshold=0.5, targets=(target(EgressPolicy.NEVER),))
    route = msgspec.structs.replace(
        routing.before(request(), closed), media=media, use_local=False, straight=False, egress=EgressPolicy.NEVER
    )
    decision = routing.after(request(), route, None, None, closed)
    assert decision.action is Action.REFUSED
    assert decision.reason is (Reason.UNSUPPORTED_MEDIA if media else Reason.EGRESS_NEVER)


@pytest.mark.parametrize("mode", RouteMode)
@pytest.mark.parametrize("wish", OnLowConfidence)
def test_a_threshold_that_nothing_reaches_serves_nothing(mode, wish):
    policy = routing.Policy(threshold=float("inf"), targets=(target(EgressPolicy.ALLOW),))
    req = request(route_mode=mode, on_low_confidence=wish)
    for score in (None, 0.0, 1.0):
        route = routing.before(req, policy)
        decision = routing.after(req, route, Generation(text="t"), confidence(score), policy)
        assert decision.action in {Action.QUEUED, Action.UNCERTAIN}
        assert decision.threshold is None
