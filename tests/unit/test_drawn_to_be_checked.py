"""Which served answers are drawn to be compared by a target: never one that a rule keeps here."""

import pytest

from agent import routing
from agent.rule_settings import RuleSettings
from agent.rules import Rulebook
from agent.task_book import TaskBook
from agent.task_folder import TaskFolder
from agent.types import Action, Confidence, EgressPolicy, Generation, InferenceRequest, Message, RouteMode


@pytest.fixture
def book(tmp_path):
    (tmp_path / "mail.toml").write_text('name = "mail"\nlabels = ["a", "b"]\nquality_sample = 0.5\n')
    return TaskBook(TaskFolder(tmp_path), draw=lambda: 0.0)


def propensity(book, *rules, **fields):
    request = InferenceRequest(
        id="1", model="m", messages=(Message("user", "the patient is well"),), task="mail", received_at_ms=0, **fields
    )
    policy = routing.Policy(
        threshold=0.5, targets=(routing.TargetRule("main", EgressPolicy.ALLOW),), rules=Rulebook(rules)
    )
    route = routing.before(request, policy, policy.rules.look(request))
    sure = Confidence(score=0.9, estimator="lowest_tenth@1")
    decision = routing.after(request, route, Generation(text="a"), sure, policy)
    assert decision.action is Action.ANSWERED
    return book.sampled(request, route, decision).propensity


def test_a_served_answer_is_drawn_with_the_share_of_its_task(book):
    assert propensity(book) == 0.5


@pytest.mark.parametrize(
    "rule",
    [
        RuleSettings(name="care", keywords=("patient",), mode=RouteMode.LOCAL_ONLY),
        RuleSettings(name="care", keywords=("patient",), egress=EgressPolicy.NEVER),
        RuleSettings(name="sure", confidence_from=0.8, then="answer", egress=EgressPolicy.NEVER),
        RuleSettings(name="sure", confidence_from=0.8, then="answer", egress=EgressPolicy.APPROVE),
        RuleSettings(name="sure", confidence_from=0.8, then="answer", targets=("nobody",)),
    ],
)
def test_what_a_rule_keeps_here_is_not_drawn(book, rule):
    assert propensity(book, rule) is None


@pytest.mark.parametrize("fields", [{"egress": EgressPolicy.NEVER}, {"route_mode": RouteMode.LOCAL_ONLY}])
def test_what_its_caller_keeps_here_is_not_drawn(book, fields):
    assert propensity(book, **fields) is None
