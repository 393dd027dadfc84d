"""The figures of the benchmark of written answers; nothing is asked here."""

import json
import math

import numpy as np
import pytest

from agent.likelihoods import LabelScores
from agent.structure import ToolCall
from agent.types import Generation, Token
from benchmarks import certificates, open_answers, open_sets
from benchmarks.certificates import Answers
from benchmarks.open_answers import Told
from benchmarks.open_sets import Item


def test_what_escalating_gains_with_a_perfect_cloud():
    perfect = Answers(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True]))
    apgr, most, needed = certificates.attainable(perfect)
    assert apgr == most == pytest.approx(0.75)
    assert needed == {0.5: 0.25, 0.8: 0.5, 0.95: 0.5}
    turned = Answers(-perfect.scores, perfect.right)
    assert certificates.attainable(turned)[0] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        ({"n": 5, "unit": "cm"}, True),
        ({"n": 5}, True),
        ({"n": 6}, False),
        ({"n": True}, False),
        ({"n": 5, "more": 1}, False),
        ({"unit": "cm"}, False),
    ],
)
def test_a_call_has_values_that_the_set_allows(arguments, right):
    of = next(one for one in open_sets.SETS if one.name == "bfcl simple")
    item = Item("x", (json.dumps([{"geo.area": {"n": [5], "unit": ["cm", ""]}}]),))
    call = ToolCall(id="1", name="geo_area", arguments=json.dumps(arguments))
    assert open_answers.is_right(of, item, Generation(tool_calls=(call,))) is right
    assert not open_answers.is_right(of, item, Generation())


def told(count, seed):
    chance = np.random.default_rng(seed)
    found = []
    for number in range(count):
        right = bool(chance.random() < 0.5)
        logprob = -float(chance.gamma(1.0 if right else 4.0))
        token = Token(1, b"x", logprob, logprob - 1, 0.5)
        item = Item(f"{seed} {number}", ("x",), task="ab"[number % 2])
        found.append(Told(item, Generation(tokens=(token,)), {"sum": logprob, "noise": chance.random()}, right))
    return found


def test_each_task_of_a_set_has_an_appraiser_of_its_own():
    found = open_answers.appraise(told(120, 1), told(80, 2))
    assert len(found.pilot) == 120
    assert len(found.answers.scores) == 80
    assert [one.item.task for one in found.asked] == ["a"] * 40 + ["b"] * 40
    assert all(0 < score < 1 for score in found.answers.scores)
    figures = dict(figure[:2] for figure in open_answers._rankings(found, 0.7))
    assert figures["AUROC, appraiser (ours)"] > 0.8
    assert math.isclose(figures["AUROC, random"], 0.5, abs_tol=0.2)


def test_a_task_that_is_never_done_certifies_nothing():
    hopeless = [one._replace(right=False) for one in told(40, 1)]
    of = open_sets.SETS[1]
    figures = list(open_answers.figures_of(of, {("taught", 4): hopeless, ("asked", 4): hopeless}, 20))
    assert figures[-1][0].startswith("certified at 90%")
    assert figures[-1][1] == 0


def test_the_first_items_of_a_set_have_each_of_its_tasks():
    items = [Item(str(number), ("x",), task="abc"[number * 7 % 10 % 3]) for number in range(30)]
    assert {item.task for item in open_sets._by_turns(items)[:3]} == {"a", "b", "c"}


def test_a_task_with_too_few_wrong_answers_to_learn_from_does_not_end_the_set():
    taught = [one._replace(right=True) if one.item.task == "b" else one for one in told(120, 1)]
    found = open_answers.appraise(taught, told(80, 2))
    of_b = {float(score) for score, one in zip(found.answers.scores, found.asked, strict=True) if one.item.task == "b"}
    assert of_b == {61 / 62}
    assert len(found.answers.scores) == 80
    with pytest.raises(ValueError, match="all right or all wrong"):
        open_answers.appraise([one._replace(right=True) for one in taught], told(8, 2))


@pytest.mark.parametrize("wrong_in", [1000, 3])
def test_options_that_come_with_a_question_are_judged_as_the_product_does(wrong_in):
    of = next(one for one in open_sets.SETS if one.name == "ARC-Easy")
    asked = []
    for number in range(80):
        answers = ("b",) if number % wrong_in else ("a",)
        item = Item(str(number), answers, options=("a", "b"))
        scores = LabelScores(
            logprobs=(-1.0, -1.0), token_counts=(1, 1), mass=0.5, content_free=((-1.0, -1.0),), encoder="e",
            likeness=(0.2, 0.6 if number % wrong_in else 0.25),
        )  # fmt: skip
        generation = Generation(text="b", label_scores=scores)
        asked.append(Told(item, generation, open_answers._figures(of, item, generation, None), answers == ("b",)))
    figures = dict(
        figure[:2] for figure in open_answers.figures_of(of, {("taught", 0): asked[:40], ("asked", 0): asked[40:]}, 20)
    )
    assert figures["AUROC, score (ours)"] == 1
    assert figures["accuracy of the language model alone"] == pytest.approx(
        1 - figures["accuracy, n=80, nothing taught"]
    )
