"""Intervals: the published examples, and what they are at the ends."""

import math
import random

import pytest

from agent.report import intervals


def test_fifty_answers_of_which_ninety_percent_are_right_are_79_to_96_percent():
    found = intervals.share(45, 50)
    assert (round(found.low, 2), round(found.high, 2)) == (0.79, 0.96)
    assert str(found) == "90.0% (78.6% to 95.7%, n=50)"


@pytest.mark.parametrize(("count", "of"), [(0, 10), (10, 10), (1, 1), (3, 7), (812, 1000)])
def test_a_share_has_wilsons_interval(count, of):
    found = intervals.share(count, of)
    for bound in (found.low, found.high):  # where the seen share is just z standard errors away
        distance = abs(count / of - bound)
        assert distance == pytest.approx(intervals.Z * math.sqrt(bound * (1 - bound) / of), abs=1e-12)


def test_of_none_everything_is_possible():
    found = intervals.share(0, 0)
    assert (found.value, found.low, found.high, str(found)) == (None, 0.0, 1.0, "unknown (n=0)")
    assert intervals.difference(found, intervals.share(1, 2)) is None


def test_a_difference_is_as_newcombe_1998_has_it():
    found = intervals.difference(intervals.share(48, 80), intervals.share(56, 70))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_a_mean_and_a_quantile_hold_what_they_promise():
    chance = random.Random(3)
    held = {"mean": 0, "p95": 0}
    for _ in range(300):
        drawn = [chance.expovariate(1) for _ in range(120)]
        mean, p95 = intervals.mean(drawn), intervals.quantile(sorted(drawn), 0.95)
        held["mean"] += mean.low <= 1 <= mean.high
        held["p95"] += p95.low <= -math.log(0.05) <= p95.high
    assert held["mean"] >= 270
    assert held["p95"] >= 276


@pytest.mark.parametrize(("values", "median"), [([1], 1), ([1, 2], 1), ([1, 2, 3], 2), ([1, 2, 3, 4], 2)])
def test_a_quantile_is_one_of_the_values(values, median):
    assert intervals.quantile(values, 0.5).value == median
    assert intervals.quantile(values, 1.0).value == values[-1]


def test_the_bootstrap_is_the_same_each_time():
    items = [0, 1] * 50
    found = intervals.bootstrap(items, lambda drawn: sum(drawn) / len(drawn))
    assert found == intervals.bootstrap(items, lambda drawn: sum(drawn) / len(drawn))
    assert found.value == 0.5
    assert 0.38 < found.low < 0.45
    assert 0.55 < found.high < 0.62
