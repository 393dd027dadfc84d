"""Contextual calibration: what the model likes to say anyway is divided out."""

import math

import msgspec
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


def like(figures, *likeness, **other):
    return msgspec.structs.replace(scores(figures, *(figures,) * 2), likeness=likeness, encoder="e" * 64, **other)


def test_the_label_that_is_like_the_input_wins_where_the_model_says_nothing():
    found = distribution(like((-1.0, -3.0, -2.0), 0.1, 0.4, 0.2))
    assert found.index(max(found)) == 1
    assert sum(found) == pytest.approx(1)


def test_the_score_falls_where_the_encoder_prefers_another_label():
    figures, flat = (math.log(0.98), math.log(0.02)), (-1.0, -1.0)
    agree, against = (scores(figures, flat, tokens=(1, 1)) for _ in range(2))
    agree = judge(Generation(label_scores=msgspec.structs.replace(agree, likeness=(0.3, 0.2), encoder="e" * 64)))
    against = judge(Generation(label_scores=msgspec.structs.replace(against, likeness=(0.2, 0.3), encoder="e" * 64)))
    assert agree.estimator == against.estimator == f"label_likeness@1/{'e' * 16}"
    assert against.signals["likeness_margin"] == pytest.approx(-0.1)
    assert 0 <= against.score < 0.5 < agree.score <= 1


def test_a_likeness_that_is_no_number_is_no_signal():
    assert distribution(like((-1.0, -2.0), math.nan, 0.1)) == ()
    assert judge(Generation(label_scores=like((-1.0, -2.0), 0.1, math.inf))).score is None


def test_a_head_has_no_use_for_likeness():
    head = LabelScores(probabilities=(0.9, 0.1), likeness=(0.0, 1.0), encoder="e" * 64, head="h")
    assert judge(Generation(label_scores=head)).score == 0.9
    assert judge(Generation(label_scores=head)).estimator == "head_probability@2"


@given(st.lists(st.tuples(FIGURES, st.floats(-1, 1)), min_size=2, max_size=8))
def test_the_score_is_within_bounds_whatever_the_likeness(rows):
    found = judge(Generation(label_scores=like(tuple(a for a, _ in rows), *(b for _, b in rows))))
    assert 0 <= found.score <= 1
