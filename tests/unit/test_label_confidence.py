"""Contextual calibration: what the model likes to say anyway is divided out."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.confidence.labels import best, distribution, judge
from agent.likelihoods import LabelScores
from agent.types import Failure, FailureKind, Generation

FIGURES = st.floats(-60, 0)


def scores(logprobs, *content_free, tokens=None, mass=0.5):
    return LabelScores(
        logprobs=tuple(logprobs),
        token_counts=tokens or (1,) * len(logprobs),
        mass=mass,
        content_free=tuple(map(tuple, content_free)),
    )


def test_a_prior_is_divided_out():
    likes_the_first = (math.log(0.9), math.log(0.1))
    told = (math.log(0.8), math.log(0.2))
    found = distribution(scores(told, likes_the_first))
    assert found == pytest.approx([(0.8 / 0.9) / (0.8 / 0.9 + 0.2 / 0.1), (0.2 / 0.1) / (0.8 / 0.9 + 0.2 / 0.1)])
    assert best(("a", "b"), found) == 1


def test_the_prior_is_the_mean_of_probabilities_over_the_inputs_without_content():
    found = distribution(scores((-1, -1), (math.log(0.9), math.log(0.1)), (math.log(0.5), math.log(0.5))))
    assert found == pytest.approx([0.3, 0.7])


def test_long_labels_are_compared_per_token():
    found = distribution(scores((-2.0, -12.0), (-2.0, -12.0), tokens=(1, 6)))
    assert found == pytest.approx([0.5, 0.5])
    longer = distribution(scores((-2.0, -6.0), (-2.0, -12.0), tokens=(1, 6)))
    assert longer[1] == pytest.approx(math.e / (1 + math.e))


@given(
    st.integers(2, 8).flatmap(lambda n: st.lists(st.lists(FIGURES, min_size=n, max_size=n), min_size=2, max_size=5)),
    st.randoms(),
)
def test_it_is_a_distribution_and_the_order_of_labels_is_nothing(rows, random):
    found = distribution(scores(*rows))
    assert sum(found) == pytest.approx(1)
    order = list(range(len(rows[0])))
    random.shuffle(order)
    turned = distribution(scores(*([row[index] for index in order] for row in rows)))
    assert turned == pytest.approx([found[index] for index in order])
    names = [f"label {index}" for index in order]
    straight = [f"label {index}" for index in range(len(order))]
    exact = [found[index] for index in order]
    assert names[best(names, exact)] == straight[best(straight, found)]


def test_without_anything_to_correct_by_there_is_no_signal():
    assert distribution(scores((-1, -2))) == ()
    assert judge(Generation(label_scores=scores((-1, -2)))).score is None
    assert judge(Generation()).score is None
    assert judge(Generation(label_scores=scores((math.nan, -2), (-1, -1)))).score is None
    failed = Generation(label_scores=scores((-1, -9), (-1, -1)), failure=Failure(FailureKind.CRASH, "x"))
    assert judge(failed).score is None


def test_the_score_is_how_far_the_second_is_behind():
    twice = judge(Generation(label_scores=scores((math.log(0.6), math.log(0.3), math.log(0.1)), (-1, -1, -1))))
    assert twice.score == pytest.approx(0.5)
    assert twice.signals["margin"] == pytest.approx(math.log(2))
    assert twice.signals["mass"] == 0.5
    assert not twice.calibrated
    assert judge(Generation(label_scores=scores((-5, -5), (-1, -1)))).score == pytest.approx(0)


def test_equals_are_told_apart_by_their_text():
    assert best(("b", "a"), (0.5, 0.5)) == 1
    assert best(("a", "b"), (0.5, 0.5)) == 0
