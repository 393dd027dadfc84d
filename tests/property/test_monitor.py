"""What watches a promise: its mathematics against mpmath, and that it alarms where it should and only there."""

import math
import random

import mpmath
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from agent.confidence import drift, monitor
from agent.confidence.betting import Wealth
from agent.confidence.calibration import Calibration, CalibrationKey, Report
from agent.confidence.certify import Certificate
from agent.confidence.maps import ProbabilityMap
from agent.confidence.monitor import Monitor

EXACT = 1e-9
ALPHA, DELTA = 0.05, 0.1


def calibration(**fields):
    given = {
        "id": "c1",
        "task": "mail",
        "key": CalibrationKey(task_digest="t", model="m", model_digest="d", runtime="r", estimator="e"),
        "map": ProbabilityMap(),
        "threshold": 0.6,
        "target": "accuracy",
        "value": 1 - ALPHA,
        "certificate": Certificate.PAC,
        "delta": DELTA,
        "sentence": "",
        "report": Report(
            examples=300, right=280, no_signal=0, served=250, errors=8, coverage_low=0.8, coverage_high=0.9,
            expected_error=0.0, expected_error_floor=0.0,
        ),
        "reference": drift.reference(*stream(random.Random(0), 300)),
    }  # fmt: skip
    return Calibration(**{**given, **fields})


def stream(chance, count, *, shifted=False):
    """Scores, lengths and labels of some inputs; shifted ones are less sure, longer, and mostly of one kind."""
    scores = [chance.betavariate(4, 3) if shifted else chance.betavariate(8, 2) for _ in range(count)]
    lengths = [round(chance.lognormvariate(4.6 if shifted else 4.0, 0.4)) for _ in range(count)]
    labels = ["refund" if chance.random() < (0.8 if shifted else 0.4) else chance.choice("ab") for _ in range(count)]
    return scores, lengths, labels


def watch(chance, count, *, shifted=False, after=None):
    found = after or Monitor(task="mail", calibration="c1")
    about = calibration()
    for score, length, label in zip(*stream(chance, count, shifted=shifted), strict=True):
        found = monitor.seen(found, about, score=score, length=length, label=label, at_ms=0)
    return found


@given(st.floats(0.01, 30), st.integers(1, 40))
@hypothesis_settings(max_examples=60, deadline=None)
def test_the_chi_square_tail_is_that_of_mpmath(at, freedom):
    oracle = mpmath.gammainc(mpmath.mpf(freedom) / 2, mpmath.mpf(at) / 2, regularized=True)
    assert drift.chi_square_tail(at, freedom) == pytest.approx(float(oracle), abs=EXACT)


@given(st.floats(0.21, 4))
@hypothesis_settings(max_examples=40, deadline=None)
def test_the_kolmogorov_tail_is_that_of_mpmath(at):
    oracle = 2 * mpmath.nsum(lambda j: (-1) ** (int(j) - 1) * mpmath.exp(-2 * j**2 * mpmath.mpf(at) ** 2), [1, 200])
    assert drift.kolmogorov_tail(at) == pytest.approx(float(oracle), abs=EXACT)


@given(st.lists(st.booleans(), max_size=200), st.floats(0.01, 0.5))
@hypothesis_settings(max_examples=60, deadline=None)
def test_bets_are_fair_at_the_limit_and_never_lose_all(wrongs, alpha):
    wealth = Wealth()
    for wrong in wrongs:
        bet = wealth.bet(alpha)
        assert 0 <= bet < 1 / alpha
        won, lost = 1 + bet * (1 - alpha), 1 - bet * alpha
        assert alpha * won + (1 - alpha) * lost == pytest.approx(1.0, abs=EXACT)
        assert lost > 0
        wealth = wealth.after(wrong=wrong, alpha=alpha)
    assert (wealth.checked, wealth.wrong) == (len(wrongs), sum(wrongs))


def test_a_promise_that_holds_is_seldom_doubted_however_long_one_looks():
    alarms, runs = 0, 300
    for seed in range(runs):
        chance, wealth = random.Random(seed), Wealth()
        for _ in range(400):
            wealth = wealth.after(wrong=chance.random() < ALPHA, alpha=ALPHA)
        alarms += wealth.alarms(DELTA)
    assert alarms / runs <= DELTA + 2 * math.sqrt(DELTA * (1 - DELTA) / runs)


def test_a_promise_that_is_broken_raises_the_alarm_soon_and_tightens_the_threshold():
    chance, about = random.Random(3), calibration()
    found = Monitor(task="mail", calibration="c1")
    checked = 0
    while not found.tightened:  # sure answers are right, those nearer to the threshold are not any more
        probability = chance.uniform(0.6, 1.0)
        right = chance.random() > (0.02 if probability > 0.8 else 0.5)
        found = monitor.checked(found, about, score=probability, right=right, at_ms=7)
        checked += 1
        assert checked < 300
    assert [alarm.kind for alarm in found.alarms] == ["quality"]
    assert "calibrate again" in found.alarms[0].why
    assert found.threshold is None or found.threshold > 0.6
    assert found.wealth == Wealth()  # the next bets are on the new threshold


def test_where_nothing_holds_any_more_nothing_is_served():
    found = Monitor(task="mail", calibration="c1")
    for _ in range(60):
        found = monitor.checked(found, calibration(), score=0.9, right=False, at_ms=7)
    assert (found.tightened, found.threshold) == (True, None)


def test_a_share_of_escalations_promises_no_accuracy_to_be_watched():
    found = Monitor(task="mail", calibration="c1")
    for _ in range(60):
        found = monitor.checked(found, calibration(target="escalate", value=0.2), score=0.9, right=False, at_ms=7)
    assert not found.alarms


def test_an_unshifted_stream_raises_no_alarm_and_a_shifted_one_does():
    quiet = [watch(random.Random(seed), 5 * drift.WINDOW) for seed in range(1, 21)]
    assert not [found.alarms for found in quiet if found.alarms]
    assert quiet[0].looks == 5
    shifted = watch(random.Random(9), drift.WINDOW, shifted=True, after=quiet[0])
    assert {one.figure for one in shifted.shifts} == {"score", "length", "label"}
    assert [alarm.kind for alarm in shifted.alarms] == ["drift"]
    assert "score (0." in shifted.alarms[0].why


def test_looks_together_have_the_level_that_is_named():
    assert math.fsum(3 * drift.level_of_look(look, 3, 0.01) for look in range(1, 100_000)) < 0.01


def test_scores_that_are_none_are_not_compared():
    about, found = calibration(), Monitor(task="mail", calibration="c1")
    for _ in range(drift.WINDOW):
        found = monitor.seen(found, about, score=None, length=50, label=None, at_ms=0)
    assert found.looks == 1
    assert "score" not in {one.figure for one in found.shifts}
