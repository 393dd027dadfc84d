"""Proof that every path through a configuration's routes ends, and where it ends. Pure.

The rules are not read but walked: each rule before the local model (and none) with every route mode,
each outcome of the local model, and each rule after it, goes through the very functions that decide
about requests. Words and topics are taken as given: a rule's text conditions hold or do not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from enum import StrEnum

import msgspec

from agent import routing
from agent.errors import InvalidRequest
from agent.routing import Policy
from agent.rule_settings import RuleSettings
from agent.rules import Facts, Rulebook
from agent.types import (
    Action,
    Confidence,
    Decision,
    EgressPolicy,
    Failure,
    FailureKind,
    Generation,
    InferenceRequest,
    Message,
    RouteMode,
)


class End(StrEnum):
    """Where a path ends."""

    ANSWERED = "answered"
    UNCERTAIN = "served as uncertain"
    REFUSED = "refused with its error"
    SENT = "queued, sent at once"
    APPROVAL = "queued, waits for a person"
    NOBODY = "queued, waits for a target and a person"
    INVALID = "refused as contradictory"


class Path(msgspec.Struct, frozen=True, kw_only=True):
    """One way through the routes."""

    before: str  # name of the rule, "" for none
    outcome: str
    after: str
    mode: RouteMode
    end: End
    target: str | None


class Problem(msgspec.Struct, frozen=True):
    """What is wrong with the rules. ``fatal``: requests would not go where the rule says."""

    rule: str
    what: str
    fatal: bool = True


class Checked(msgspec.Struct, frozen=True):
    """The outcome of a check."""

    paths: tuple[Path, ...]
    problems: tuple[Problem, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong that changes where requests go."""
        return not any(one.fatal for one in self.problems)


def check(policy: Policy, *, tasks: Sequence[str] | None = None, keys: Sequence[str] = ()) -> Checked:
    """Walk every path. ``tasks``: names that are known; None: not looked at."""
    rules = policy.rules.settings
    paths = tuple(_paths(policy, rules))
    problems = [*_names(policy, rules, tasks, keys), *_shadows(rules), *_dead_ends(rules, paths), *_injection(rules)]
    return Checked(paths, tuple(problems))


# --- walking --------------------------------------------------------------------------


def _outcomes(rules: Sequence[RuleSettings]) -> Iterator[tuple[str, Generation, float | None]]:
    """Yield representatives of every class of outcomes that a rule or the threshold tells apart."""
    edges = {
        0.0,
        1.0,
        *(edge for one in rules for edge in (one.confidence_below, one.confidence_from) if edge is not None),
    }
    ordered = sorted(edges)
    scores = {*ordered, *((low + high) / 2 for low, high in itertools.pairwise(ordered))}
    for score in sorted(scores):
        yield f"confidence {score:.3g}", Generation(text="answer"), score
    yield "no signal", Generation(text="answer"), None
    yield "not whole", Generation(text="answ", incomplete=True), 1.0
    for kind in FailureKind:
        yield f"failure {kind}", Generation(failure=Failure(kind, "why")), None


def _paths(policy: Policy, rules: Sequence[RuleSettings]) -> Iterator[Path]:
    firsts = [None, *(one for one in rules if not one.is_after)]
    seconds = [None, *(one for one in rules if one.is_after)]
    for first, mode, second in itertools.product(firsts, RouteMode, seconds):
        chosen = [one for one in (first, second) if one is not None]
        walked = msgspec.structs.replace(policy, rules=Rulebook([_bare(one) for one in chosen]))
        request = _request(mode, second)
        facts = Facts(texts=frozenset(one.name for one in chosen))
        name = first.name if first else ""
        try:
            route = routing.before(request, walked, facts)
        except InvalidRequest:
            if second is None:
                yield Path(before=name, outcome="", after="", mode=mode, end=End.INVALID, target=None)
            continue
        if not route.use_local:
            if second is None:
                yield _path(
                    name, "the local model is not asked", "", route, routing.after(request, route, None, None, walked)
                )
            continue
        for told, generation, score in _outcomes(rules):
            confidence = None if score is None else Confidence(score=score, estimator="checked@1")
            decision = routing.after(request, route, generation, confidence, walked)
            fired = second is not None and any(f"rule {second.name} holds after" in line for line in decision.trace)
            if second is None or fired:
                yield _path(name, told, second.name if second else "", route, decision)


def _path(before: str, outcome: str, after: str, route: routing.Route, decision: Decision) -> Path:
    return Path(
        before=before, outcome=outcome, after=after, mode=route.mode, end=end_of(decision), target=decision.target
    )


def end_of(decision: Decision) -> End:
    """Return where a decision leads."""
    match decision.action:
        case Action.ANSWERED:
            return End.ANSWERED
        case Action.UNCERTAIN:
            return End.UNCERTAIN
        case Action.REFUSED:
            return End.REFUSED
    if decision.target is None:
        return End.NOBODY
    return End.SENT if decision.egress in {EgressPolicy.ALLOW, EgressPolicy.REDACT} else End.APPROVAL


def _bare(rule: RuleSettings) -> RuleSettings:
    """Return a rule without the conditions that a walk takes as given; those on the answer stay."""
    return msgspec.structs.replace(
        rule,
        task=(),
        key=(),
        keywords=(),
        regex="",
        language=(),
        prompt_tokens_over=0,
        prompt_tokens_under=0,
        tools=None,
        images=None,
        metadata={},
        topic=None,
    )


def _request(mode: RouteMode, second: RuleSettings | None) -> InferenceRequest:
    critical = {"criticality": "high"} if second is not None and second.critical else {}
    return InferenceRequest(
        id="checked",
        model="checked",
        messages=(Message("user", "checked"),),
        route_mode=mode,
        metadata=critical,
        received_at_ms=0,
    )


# --- what is wrong --------------------------------------------------------------------


def _names(
    policy: Policy, rules: Sequence[RuleSettings], tasks: Sequence[str] | None, keys: Sequence[str]
) -> Iterator[Problem]:
    by_name = {one.name: one for one in policy.targets}
    for rule in rules:
        for name in rule.targets:
            if name not in by_name:
                yield Problem(rule.name, f"there is no target {name}")
            elif by_name[name].egress is EgressPolicy.NEVER:
                yield Problem(rule.name, f'the egress of target {name} is "never": it is passed over', fatal=False)
        for name in rule.key:
            if name not in keys:
                yield Problem(rule.name, f"there is no caller {name} in [[keys]]")
        wanted = (*rule.task, *((rule.topic.task,) if rule.topic else ()))
        for name in wanted:
            if tasks is not None and name not in tasks:
                yield Problem(rule.name, f"there is no task {name}")
        if rule.is_after and rule.mode is not None:
            yield Problem(rule.name, "mode is decided before the local model; after it say then")
        if not rule.is_after and not (
            rule.mode or rule.targets or rule.handoff or rule.egress or rule.wanted_s or rule.priority
        ):
            yield Problem(
                rule.name, "it decides nothing: say mode, targets, handoff, egress, wanted_s or priority", fatal=False
            )
        if (
            rule.prompt_tokens_over
            and rule.prompt_tokens_under
            and rule.prompt_tokens_over + 1 >= rule.prompt_tokens_under
        ):
            yield Problem(rule.name, "no number of tokens is over the one and under the other")
        low, high = rule.confidence_from, rule.confidence_below
        if low is not None and high is not None and low >= high:
            yield Problem(rule.name, "no confidence is from the one on and below the other")


def _shadows(rules: Sequence[RuleSettings]) -> Iterator[Problem]:
    """Find rules that never decide: one before them holds whenever they do."""
    for index, rule in enumerate(rules):
        for earlier in rules[:index]:
            if earlier.is_after is rule.is_after and _covers(earlier, rule):
                yield Problem(rule.name, f"it never decides: rule {earlier.name} before it holds whenever it does")
                break


_ANY_OF = ("task", "key", "keywords", "language", "failure")
_THE_SAME = ("regex", "tools", "images", "topic", "valid", "critical")


def _covers(wide: RuleSettings, narrow: RuleSettings) -> bool:
    """Return whether every condition of ``wide`` is one of ``narrow`` too, or follows from one."""
    lists = [({*getattr(wide, name)}, {*getattr(narrow, name)}) for name in _ANY_OF]
    values = [(getattr(wide, name), getattr(narrow, name)) for name in _THE_SAME]
    over, under = (
        (wide.prompt_tokens_over, narrow.prompt_tokens_over),
        (wide.prompt_tokens_under, narrow.prompt_tokens_under),
    )
    below, start = (wide.confidence_below, narrow.confidence_below), (wide.confidence_from, narrow.confidence_from)
    return (
        all(not some or (few and few <= some) for some, few in lists)
        and all(one in (None, "") or one == other for one, other in values)
        and all(
            value in {"*", narrow.metadata.get(name)} and name in narrow.metadata
            for name, value in wide.metadata.items()
        )
        and over[1] >= over[0]
        and (not under[0] or 0 < under[1] <= under[0])
        and (below[0] is None or (below[1] is not None and below[1] <= below[0]))
        and (start[0] is None or (start[1] is not None and start[1] >= start[0]))
    )


def _dead_ends(rules: Sequence[RuleSettings], paths: Sequence[Path]) -> Iterator[Problem]:
    for rule in rules:
        own = [one for one in paths if rule.name == (one.after if rule.is_after else one.before)]
        if (
            not rule.is_after
            and rule.mode is RouteMode.CLOUD_ONLY
            and own
            and all(one.end is End.INVALID for one in own)
        ):
            yield Problem(rule.name, "cloud_only, and nothing may leave: every such request is refused")
        if any(one.end is End.NOBODY for one in own):
            yield Problem(
                rule.name,
                "no target may be asked: what it queues waits until one is added and a person releases it",
                fatal=False,
            )


def _injection(rules: Sequence[RuleSettings]) -> Iterator[Problem]:
    """Name the rules by which whoever writes the text decides that it leaves. What may leave they cannot change."""
    for rule in rules:
        on_text = bool(rule.keywords or rule.regex or rule.language or rule.topic)
        if on_text and rule.mode in {RouteMode.CLOUD_FIRST, RouteMode.CLOUD_ONLY}:
            yield Problem(
                rule.name,
                "whoever writes the text decides by it that the request leaves; what may leave, the egress policies still say",
                fatal=False,
            )
