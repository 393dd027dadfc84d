"""From judged examples to a stored calibration, its sentence and its pictures."""

import math
import random
import re
from xml.etree import ElementTree as ET

import msgspec
import pytest

from agent.confidence.calibration import CalibrationKey, differences, judge
from agent.confidence.certify import Certificate, Scored
from agent.errors import InvalidRequest, NotCertified
from agent.evaluation import pictures
from agent.evaluation.certifying import Judgement, Wish, budget_share, calibrate, expected_calibration_error
from agent.types import Confidence

KEY = CalibrationKey(task_digest="t", model="m", model_digest="d", runtime="r", estimator="e@1")
ACCURACY = Wish(target="accuracy", value=0.9)


def judged(count=300, power=0.15, seed=1, **more):
    chance = random.Random(seed)
    return [
        Judgement(line, score := chance.random() ** power, chance.random() < score, **more)
        for line in range(1, count + 1)
    ]


def made(examples, wish=ACCURACY, **more):
    return calibrate(examples, wish, task="mail", key=KEY, **more)


def test_a_calibration_says_what_it_promises_and_by_what():
    found = made(judged())
    report = found.report
    assert 0 < found.threshold < 1
    assert report.coverage_low < report.coverage < report.coverage_high
    assert report.errors / report.served < 0.1
    assert report.expected_error < report.expected_error_floor + 0.05
    assert sum(one.answers for one in report.reliability) == report.examples == 300
    assert [one.coverage for one in report.curve] == sorted(one.coverage for one in report.curve)
    assert found.short == "accuracy 0.9 (pac 0.9)"
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=type(found)) == found


def test_served_is_what_the_stored_threshold_serves():
    examples = judged()
    found = made(examples)
    served = [one for one in examples if found.map.probability(one.score) >= found.threshold]
    assert (len(served), sum(not one.right for one in served)) == (found.report.served, found.report.errors)


@pytest.mark.parametrize(
    ("wish", "count", "what"),
    [
        (ACCURACY, 5, "17 more are needed at least, 22 in all"),
        (Wish(target="accuracy", value=0.95, confidence=0.95), 58, "1 more are needed at least, 59 in all"),
        (Wish(target="accuracy", value=0.9, certificate=Certificate.MEAN), 10, "20 more"),
        (Wish(target="wrong_share", value=0.02), 10, "39 more"),
        (Wish(target="escalate", value=0.2), 5, "bring 20"),
    ],
)
def test_too_few_examples_are_told_how_many_more(wish, count, what):
    with pytest.raises(NotCertified, match=what):
        made(judged(count), wish)


def test_a_model_that_is_nearly_good_enough_is_told_about_how_many_more():
    with pytest.raises(NotCertified, match=r"about \d+ more might"):
        made(judged(120, power=0.05, seed=3), Wish(target="accuracy", value=0.95, confidence=0.99))


def test_a_model_that_is_wrong_everywhere_serves_nothing():
    found = made([Judgement(n, random.Random(n).random(), n % 100 == 0) for n in range(200)])
    assert found.threshold is None
    assert "Nothing can be served locally" in found.sentence
    told = judge(found, KEY, Confidence(score=0.99, raw=0.99, estimator="e@1"))
    assert told.threshold == math.inf
    assert told.confidence.calibrated


def test_scores_that_are_none_are_never_served_and_counted():
    examples = [*judged(200), *(Judgement(n, None, True) for n in range(20)), Judgement(1, math.nan, True)]
    found = made(examples)
    assert found.report.no_signal == 21
    assert found.report.served <= 200
    none = judge(found, KEY, Confidence(score=None, estimator="e@1")).confidence
    assert (none.score, none.calibrated) == (None, True)
    assert judge(found, KEY, Confidence(score=0.0, raw=0.9, estimator="e@1")).confidence.score < 0.1


def test_another_key_has_no_guarantee():
    found = made(judged())
    assert differences(KEY, KEY) == []
    for field in ("task_digest", "model_digest", "runtime", "estimator"):
        other = msgspec.structs.replace(KEY, **{field: "x"})
        assert differences(KEY, other)
        told = judge(found, other, Confidence(score=0.9, raw=0.9, estimator="e@1"))
        assert (told.confidence.calibrated, told.confidence.guarantee, told.threshold) == (False, "none", None)
    assert judge(None, KEY, Confidence(score=0.9, estimator="e@1")).confidence.guarantee == "none"


def test_a_pilot_moves_the_start_only():
    pilot = [Scored(one.score, one.right) for one in judged(500, seed=9)]
    found = made(judged(120), pilot=pilot)
    assert found.threshold is not None


def test_without_answers_only_shares_of_traffic_are_promised():
    examples = [Judgement(n, n / 100, None) for n in range(100)]
    found = made(examples, Wish(target="escalate", value=0.2))
    assert found.report.curve == ()
    assert 0.8 <= found.report.coverage < 0.9  # with probability 90 %, so fewer than 20 % are escalated
    assert pictures.in_terminal(found)


def test_silent_answers_are_escalated_in_any_case():
    examples = [*judged(100), *(Judgement(n, None, None) for n in range(50))]
    with pytest.raises(NotCertified, match=r"50 of 150 examples have no score"):
        made(examples, Wish(target="escalate", value=0.2))


def test_a_share_is_promised_with_how_right_the_rest_is():
    """Simulated traffic that is right as often as it says: the share told beside the promise is too high one time in ten."""
    wish = Wish(target="escalate", value=0.3)
    assert (
        "Of the answers served at least" not in made([Judgement(n, n / 100, None) for n in range(100)], wish).sentence
    )
    too_high = 0
    for seed in range(120):
        chance = random.Random(seed)
        scores = [chance.random() for _ in range(80)]
        found = made([Judgement(n, score, chance.random() < score) for n, score in enumerate(scores)], wish)
        told = float(re.search(r"Of the answers served at least ([\d.]+)% are right", found.sentence)[1]) / 100
        served = sorted(scores)[-found.report.served :]
        too_high += told > (1 + served[0]) / 2  # the truth: uniform above the threshold
    assert 0 < too_high <= 120 * (0.1 + 2 * (0.1 * 0.9 / 120) ** 0.5)


def test_budgets_are_shares():
    assert budget_share(1.0, 0.01, 1000) == pytest.approx(0.1)
    assert budget_share(100.0, 0.01, 10) == 1.0
    with pytest.raises(InvalidRequest, match="above 0"):
        budget_share(1.0, 0.0, 10)


def test_a_map_that_is_right_has_hardly_any_error():
    chance = random.Random(1)
    told = [(p, chance.random() < p) for p in (chance.random() for _ in range(5000))]
    assert expected_calibration_error(told) < 0.03
    assert expected_calibration_error([(0.9, False)] * 50) == pytest.approx(0.9)


def test_pictures_are_whole_documents_with_every_point():
    found = msgspec.structs.replace(made(judged()), task="a<b>&c")
    for text in (pictures.reliability_svg(found), pictures.risk_coverage_svg(found)):
        root = ET.fromstring(text)
        assert root.tag.endswith("svg")
    circles = ET.fromstring(pictures.reliability_svg(found)).findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == len(found.report.reliability)
    lines = pictures.in_terminal(found)
    assert all(len(line) < 120 for line in lines)
    assert any("*" in line for line in lines)
