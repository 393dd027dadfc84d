import math

import numpy as np
import pytest

from agent.likelihoods import LabelScores
from benchmarks import certificates, open_table, untaught
from benchmarks.certificates import Answers
from benchmarks.closed_labels import rankings
from benchmarks.rows import SUMMED_UP, Row, as_json, markdown, summary

RIGHT = np.array([True, True, True, False])


def test_the_gap_to_a_cloud_that_errs_is_closed_by_what_it_gets_right() -> None:
    # Local 3 of 4, cloud 9 of 10: the gap is 0.6 answers. The wrong one first: +0.9, then -0.1 each.
    answers = Answers(np.array([0.9, 0.8, 0.7, 0.1]), RIGHT)
    apgr, most, needed = certificates.attainable(answers, 0.9)
    curve = [0, 0.9 / 0.6, 0.8 / 0.6, 0.7 / 0.6, 1]
    assert apgr == pytest.approx(most) == pytest.approx(float(np.trapezoid(curve, dx=0.25)))
    assert needed == dict.fromkeys(certificates.GAPS, 0.25)


def test_there_is_no_gap_to_a_cloud_that_is_no_better() -> None:
    apgr, most, needed = certificates.attainable(Answers(np.array([0.9, 0.8, 0.7, 0.1]), RIGHT), 0.75)
    assert all(map(math.isnan, (apgr, most, *needed.values())))


def test_a_gap_is_told_to_both_clouds_where_there_is_one() -> None:
    figures = [what for what, *_ in open_table.gaps(Answers(np.array([0.9, 0.8, 0.7, 0.1]), RIGHT))]
    assert [what.partition(";")[0] for what in figures if what.startswith("APGR")] == [
        "APGR, perfect cloud (simulated)", "APGR, 95 % cloud (simulated)",
    ]  # fmt: skip
    assert list(open_table.gaps(Answers(np.array([0.9, 0.8]), np.array([True, True])))) == []


def test_what_other_programs_go_by_is_of_the_scores_as_they_come() -> None:
    # By its sum the short label is likelier, by its mean the long one; inputs without content like the short one, too.
    told = LabelScores(logprobs=(-2.0, -3.0), token_counts=(1, 3), mass=0.2, content_free=((-1.0, -4.0),))
    found = {what: (chosen, float(sure[0])) for what, chosen, sure in untaught.ways([told])}
    assert found["raw log-probability"] == ([0], -2.0)
    assert found["mean log-probability, scaled"] == ([1], pytest.approx(math.exp(-1)))
    share = 1 / (1 + math.exp(-1))
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert found["entropy alone (as Cactus)"] == ([0], pytest.approx(-entropy))
    assert found["corrected by inputs without content"] == ([1], pytest.approx(1 - math.exp(-2)))


def test_ours_stands_beside_entropy_alone() -> None:
    rows = list(
        rankings(
            "set", RIGHT, {"top (ours)": np.array([4.0, 3.0, 2.0, 1.0]), "entropy alone": np.array([4.0, 3, 1, 2])}
        )
    )
    assert [(row.what, row.value, row.peer) for row in rows if row.what.startswith("AUROC")] == [
        ("AUROC, top (ours)", 1.0, pytest.approx(2 / 3)),
        ("AUROC, entropy alone", pytest.approx(2 / 3), None),
    ]


def test_a_row_is_told_with_its_ratio_to_the_other() -> None:
    row = Row("set", "ECE", 0.02, None, "at most 0.03", True, 0.01)
    assert as_json(row) == {
        "name": "set: ECE", "ours": 0.02, "peer": 0.01, "ratio": 2.0, "interval": None, "wanted": "at most 0.03",
        "ok": True,
    }  # fmt: skip
    assert as_json(Row("set", "accuracy", 0.5))["ratio"] is None
    assert "| set | ECE | 0.020 |  | at most 0.03 | yes |" in markdown([row])


def test_the_summary_has_a_line_for_each_set_of_which_most_is_known() -> None:
    whole = [Row("taught", f"{begin} and more", 0.5 + at / 100) for at, begin in enumerate(SUMMED_UP.values())]
    del whole[4]  # what was not measured is left empty
    lines = summary([*whole, Row("hard", "accuracy, n=5", 0.4)]).splitlines()
    assert lines[2:] == ["| taught | 0.500 | 0.510 | 0.520 | 0.530 |  | 0.550 | 0.560 | 0.570 | 0.580 | 0.590 |"]
