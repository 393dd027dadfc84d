"""Which of the exported examples may certify: those that were drawn alike, never the escalated ones alone."""

import random

from agent.evaluation.drawn import fair_sample
from agent.evaluation.examples import Example, parse_examples
from agent.tasks import TaskSpec

TASK = TaskSpec(name="mail", labels={"a": "", "b": ""})


def example(number, **fields):
    return Example(number, f"text {number}", "a", **fields)


def test_examples_without_an_origin_are_taken_as_they_are():
    found = [example(number) for number in range(5)]
    assert fair_sample(found) == (found, [])


def test_what_was_escalated_alone_certifies_nothing():
    kept, notices = fair_sample([example(n, origin="escalation", served=False, propensity=1.0) for n in range(9)])
    assert kept == []
    assert "say nothing of what is served" in notices[0]


def test_what_was_picked_may_teach_but_not_certify():
    kept, notices = fair_sample([example(1, origin="caller", served=True)])
    assert kept == []
    assert "may teach, not certify" in notices[0]


def test_served_and_escalated_answers_come_out_in_the_traffic_s_proportion():
    chance = random.Random(4)
    found = []
    for number in range(
        8000
    ):  # a quarter of the traffic is escalated and wrong half of the time; one in ten served is checked
        escalated = chance.random() < 0.25
        if escalated:
            found.append(example(number, origin="escalation", served=False, propensity=1.0))
        elif chance.random() < 0.1:
            found.append(example(number, origin="quality_sample", served=True, propensity=0.1))
    assert sum(not one.served for one in found) / len(found) > 0.7  # unweighted they would be most of all
    kept, _ = fair_sample(found)
    assert 0.2 < sum(not one.served for one in kept) / len(kept) < 0.3
    assert [one.line for one in kept] == sorted(one.line for one in kept)


def test_the_file_says_how_an_example_came_about():
    line = b'{"input": "x", "label": "a", "origin": "review", "served": true, "propensity": 0.05}'
    (found,) = parse_examples([line], "f", TASK).found
    assert (found.origin, found.served, found.propensity) == ("review", True, 0.05)
