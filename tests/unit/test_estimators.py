"""What the scores promise: 0..1, None without a signal, and the figures of a worked example."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.confidence.estimators import SCORES, estimator, signals
from agent.errors import ConfigError
from agent.types import Choice, Failure, FailureKind, Generation, Token


def token(p, runner_up=0.01, entropy=0.5):
    return Token(id=1, text_bytes=b"x", logprob=math.log(p), runner_up_logprob=math.log(runner_up), entropy=entropy)


def test_worked_example():
    found = signals([token(0.9, 0.05, 0.3), token(0.5, 0.4, 0.9), token(1.0, 1e-9, 0.0)])
    assert found["mean_logprob"] == pytest.approx((math.log(0.9) + math.log(0.5)) / 3)
    assert found["min_logprob"] == found["lowest_tenth_logprob"] == pytest.approx(math.log(0.5))
    assert found["first_entropy"] == 0.3
    assert found["min_margin"] == pytest.approx(0.1)


def test_lowest_tenth_of_twenty_is_two_tokens():
    found = signals([token(0.99)] * 18 + [token(0.2), token(0.4)])
    assert found["lowest_tenth_logprob"] == pytest.approx((math.log(0.2) + math.log(0.4)) / 2)


@pytest.mark.parametrize("name", sorted(SCORES))
def test_no_tokens_is_no_signal(name):
    assert estimator(name)(Generation(text="something")).score is None


@pytest.mark.parametrize("name", sorted(SCORES))
def test_not_a_number_is_no_signal(name):
    bad = Token(id=1, text_bytes=b"x", logprob=math.nan, runner_up_logprob=-1.0, entropy=0.1)
    assert estimator(name)(Generation(tokens=(token(0.9), bad))).score is None


def test_a_failure_is_no_signal():
    generation = Generation(tokens=(token(0.99),), failure=Failure(FailureKind.CRASH, "gone"))
    assert estimator("lowest_tenth")(generation).score is None


def test_the_least_sure_of_several_answers_counts():
    def generation(*others):
        choices = tuple(Choice(text="x", finish_reason="stop", tokens=tokens) for tokens in others)
        return Generation(tokens=(token(0.9),), others=choices)

    judge = estimator("mean")
    assert judge(generation((token(0.3),), (token(0.8),))).score == pytest.approx(0.3)
    assert judge(generation((token(0.95),))).score == pytest.approx(0.9)
    assert judge(generation((token(0.8),), ())).score is None


def test_only_the_tokens_that_carried_a_choice_count():
    free, forced = token(0.9), msgspec.structs.replace(token(0.001), forced=True)
    assert estimator("minimum")(Generation(tokens=(forced, free, forced))).score == pytest.approx(0.9)
    assert estimator("minimum")(Generation(tokens=(forced, forced))).score is None


def test_the_share_of_what_was_allowed_is_a_signal():
    chosen = msgspec.structs.replace(token(0.02), allowed_mass=0.04)
    found = signals([token(0.9), chosen])
    assert found["min_allowed_mass"] == 0.04


def test_an_answer_that_was_cut_off_before_its_end_is_never_sure():
    confidence = estimator("mean")(Generation(tokens=(token(0.99),), finish_reason="length", incomplete=True))
    assert confidence.score == 0.0
    assert confidence.raw == pytest.approx(0.99)


def test_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="lowest_tenth"):
        estimator("entropy_of_vibes")


probabilities = st.floats(1e-30, 1.0)


@given(
    st.sampled_from(sorted(SCORES)),
    st.lists(st.tuples(probabilities, probabilities, st.floats(0, 20)), min_size=1, max_size=60),
)
def test_scores_stay_in_bounds_and_are_marked_uncalibrated(name, rows):
    confidence = estimator(name)(Generation(tokens=tuple(token(*row) for row in rows)))
    assert 0.0 <= confidence.score <= 1.0
    assert not confidence.calibrated
    assert confidence.estimator == f"{name}@1"
