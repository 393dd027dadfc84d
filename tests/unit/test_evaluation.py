"""Evaluations: scores, gates, the knee, the verdict; what nobody knows passes nothing."""

import json
import random
from decimal import Decimal as D

import pytest

from agent.errors import BadExamples, InvalidRequest
from agent.evaluation import pareto
from agent.evaluation.cases import Case, Cases, read_cases
from agent.evaluation.gates import cases_needed, parse_gate, passage
from agent.evaluation.judging import Asked, Question, judge
from agent.evaluation.marks import macro_f1, mark, schema_validator
from agent.evaluation.pareto import Curve, Point
from agent.evaluation.readiness import Wanted
from agent.evaluation.variants import Reply, RouteName, Scoring, Variant, hybrid
from agent.settings import TargetSettings
from agent.tasks import TaskKind, TaskSpec
from agent.types import EgressPolicy, OnLowConfidence

MAIL = TaskSpec(name="mail", labels={"refund": "", "hours": ""})
EXTRACT = TaskSpec(name="x", kind=TaskKind.EXTRACT, schema={"type": "object", "required": ["city"]})
TEXT = TaskSpec(name="t", kind=TaskKind.TEXT)
CLOUD = TargetSettings(name="main", base_url="https://x.test/v1", model="big", egress=EgressPolicy.ALLOW)


def cases_of(answers, tags=None):
    return tuple(
        Case(line=n, input=f"input {n}", answers=(answer,), tags=tags[n - 1] if tags else ())
        for n, answer in enumerate(answers, start=1)
    )


def local(answers, probabilities, *, at=0.5, model="small", dollars=D(0), ms=10.0):
    return Variant(
        model=model,
        route=RouteName.LOCAL,
        replies=tuple(
            Reply(answer=a, served=p >= at, probability=p, latency_ms=ms, input_dollars=D(0), output_dollars=dollars)
            for a, p in zip(answers, probabilities, strict=True)
        ),
    )


def target(answers, dollars=D("0.01")):
    return Variant(
        model="big",
        route=RouteName.CLOUD,
        replies=tuple(
            Reply(answer=a, local=False, latency_ms=900.0, input_dollars=dollars / 4, output_dollars=3 * dollars / 4)
            for a in answers
        ),
    )


def test_fifty_cases_at_ninety_percent_carry_no_claim_of_ninety(tmp_path):
    right = ["refund"] * 45 + ["hours"] * 5
    cases = cases_of(["refund"] * 50)
    scores = Scoring(MAIL, cases, labelled=True).scores(local(right, [0.9] * 50))
    found = passage(parse_gate("accuracy>=0.9", ()), scores)
    assert (found.passed, found.carried, found.told) == (True, False, "90.0% (78.6% to 95.7%, n=50)")
    assert not passage(parse_gate("accuracy>=90%", ()), scores, proven=True).passed
    assert passage(parse_gate("accuracy>=75%", ()), scores, proven=True).passed
    assert cases_needed(0.95, 0.9, ">=") == 139
    assert cases_needed(0.9, 0.9, ">=") is None


def test_a_hybrid_takes_the_targets_answer_where_the_local_one_is_not_sure():
    cases = cases_of(["refund", "refund", "hours", "hours"])
    first = local(["refund", "hours", "hours", "refund"], [0.9, 0.2, 0.8, 0.1], dollars=D("0.001"))
    both = hybrid(first, target(["refund"] * 4))
    assert [reply.answer for reply in both.replies] == ["refund", "refund", "hours", "refund"]
    scores = Scoring(MAIL, cases, labelled=True).scores(both)
    assert (scores.accuracy.value, scores.served.value, scores.served_accuracy.value) == (0.75, 0.5, 1.0)
    assert scores.dollars == (2 * D("0.001") + 2 * D("0.011")) / 4
    assert scores.input_dollars + scores.output_dollars == scores.dollars
    assert (scores.p50_ms, scores.p95_ms.value) == (10.0, 910.0)
    stricter = hybrid(first, target(["refund"] * 4), threshold=0.85)
    assert sum(reply.local for reply in stricter.replies) == 1


def test_what_was_escalated_and_not_asked_is_unknown_and_not_right():
    cases = cases_of(["refund", "refund", "hours"])
    both = hybrid(local(["refund", "hours", "hours"], [0.9, 0.2, 0.8]), None)
    scores = Scoring(MAIL, cases, labelled=True).scores(both)
    assert (scores.accuracy, scores.unanswered, scores.dollars, scores.p95_ms) == (None, 1, None, None)
    assert scores.accuracy_bounds == (2 / 3, 1.0)
    for gate in ("accuracy>=0.1", "cost<=100", "p95_ms<=9999", "monthly_cost<=9"):
        assert passage(parse_gate(gate, ()), scores, per_day=D(5)).told == "unknown"
        assert not passage(parse_gate(gate, ()), scores).passed


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("accuracy", "write it as"),
        ("acuracy>=0.9", "did you mean accuracy"),
        ("niceness>=0.9", "known are accuracy"),
        ("soft:accuracy>=0.9", "known are hard"),
        ("hard:p95_ms<=3", "only accuracy"),
        ("accuracy>=nan", "write it as"),
        ("accuracy=0.9", "write it as"),
    ],
)
def test_a_gate_that_is_none_is_named(text, says):
    with pytest.raises(InvalidRequest, match=says):
        parse_gate(text, ("hard",))


def test_marks_by_kind():
    assert mark(MAIL, "hours", (), ("refund",)).f1 == 0
    valid = schema_validator(EXTRACT.schema)
    good = mark(EXTRACT, '{"city": "Paris", "n": 2}', (), ('{"n": 2, "city": "paris"}',), valid)
    assert (good.right, good.exact, good.f1, good.schema_valid) == (True, False, 1.0, True)
    half = mark(EXTRACT, '{"city": "Rome", "n": 2}', (), ('{"n": 2, "city": "Paris"}',), valid)
    assert (half.right, half.f1) == (False, 0.5)
    broken = mark(EXTRACT, "Paris", (), ('{"city": "Paris"}',), valid)
    assert (broken.right, broken.schema_valid) == (False, False)
    said = mark(TEXT, "It is 1,200 euros.", (), ("1200 euros",))
    assert (said.right, said.numeric) == (False, True)
    assert said.f1 == pytest.approx(2 / 6)  # "euros" of four words and of two
    assert mark(TEXT, "Yes", (), ("yes.",)).right


def test_macro_f1_gives_each_label_the_same_weight():
    pairs = [("a", "a")] * 9 + [("a", "b")]
    assert macro_f1(pairs) == pytest.approx((2 * 9 / 19 + 0) / 2)


# --- the knee ---------------------------------------------------------------------------


def curves(shape, count=400, seed=1):
    """Options of a known shape: (cost, quality) each, with cases drawn for it."""
    chance = random.Random(seed)
    drawn = [chance.random() for _ in range(count)]
    return [
        Curve(
            name=f"{cost:g}",
            costs=tuple(cost for _ in drawn),
            rights=tuple(float(one < quality) for one in drawn),
        )
        for cost, quality in shape
    ]


def test_a_known_knee_is_found():
    shape = [(cost / 10, 0.4 + 0.5 * min(1, cost / 3) + 0.005 * cost) for cost in range(11)]
    knee = pareto.picture(curves(shape)).knee
    assert knee.name == "0.3"
    assert knee.stability >= 0.8


@pytest.mark.parametrize(
    "shape",
    [
        [(0.0, 0.5), (1.0, 0.9)],  # two points
        [(c / 10, 0.5 + 0.04 * c) for c in range(11)],  # a line
        [(0.0, 0.9), (1.0, 0.4), (2.0, 0.3)],  # the cheapest is the best
    ],
)
def test_without_a_clear_knee_it_says_so(shape):
    knee = pareto.picture(curves(shape)).knee
    assert knee.name is None
    assert knee.why.startswith("no clear knee")


def test_a_knee_that_other_draws_move_is_not_clear():
    chance = random.Random(4)
    found = [
        Curve(name=str(n), costs=(n / 10,) * 12, rights=tuple(float(chance.random() < 0.7) for _ in range(12)))
        for n in range(11)
    ]
    knee = pareto.picture(found).knee
    assert knee.name is None


def test_the_front_holds_what_nobody_beats():
    points = [Point("a", 1, 0.5), Point("b", 1, 0.7), Point("c", 2, 0.6), Point("d", 3, 0.9), Point("e", 3, 0.9)]
    assert [point.name for point in pareto.front(points)] == ["b", "d"]


# --- the whole -------------------------------------------------------------------------


def question(cases, gates=(), **fields):
    wanted = {"p95_ms": 500.0, **fields}
    return Question(
        spec=MAIL,
        cases=Cases(cases, any(case.answers for case in cases)),
        gates=tuple(parse_gate(gate, ("hard", "frequent")) for gate in gates),
        proven=False,
        wanted=Wanted(**wanted),
        targets=(CLOUD,),
        on_low_confidence=OnLowConfidence.DRAFT,
        context_tokens=4096,
    )


def asked(variant, longest_tokens=50):
    return Asked(variant=variant, joules=None, energy="nobody tells", longest_tokens=longest_tokens)


def half_hard(count):
    return [("hard",) if n % 2 else ("frequent",) for n in range(count)]


def test_go_needs_frequent_and_hard_cases_latency_money_and_a_fallback():
    cases = cases_of(["refund"] * 40, half_hard(40))
    good = local(["refund"] * 40, [0.9] * 40)
    found = judge(question(cases, per_day=D(1000), monthly_budget=D(10)), [asked(good)], target(["refund"] * 40))
    assert (found.go, found.chosen) == (True, "small local")
    slow = local(["refund"] * 40, [0.9] * 40, ms=800.0)
    found = judge(question(cases), [asked(slow)], None)
    assert [check.name for check in found.variants[0].readiness.checks if not check.passed] == ["latency"]
    weak = local(["refund", "hours"] * 20, [0.9] * 40)
    found = judge(question(cases), [asked(weak)], None)
    failed = [check.name for check in found.variants[0].readiness.checks if not check.passed]
    assert failed == ["hard cases"]
    assert not found.go
    dear = judge(question(cases, per_day=D(1000), monthly_budget=D(10)), [asked(weak)], target(["refund"] * 40))
    cloud = dear.variants[-1].readiness
    assert "$300.00 ($75.00 in, $225.00 out), at most $10.00" in {check.told for check in cloud.checks}
    assert not cloud.go


def test_untagged_cases_show_nothing_of_hard_ones():
    found = judge(question(cases_of(["refund"] * 10)), [asked(local(["refund"] * 10, [0.9] * 10))], None)
    assert not found.go
    assert any('"tag": "hard"' in check.told for check in found.variants[0].readiness.checks)


def test_a_text_near_the_context_needs_somebody_else():
    cases = cases_of(["refund"] * 4, half_hard(4))
    found = judge(question(cases), [asked(local(["refund"] * 4, [0.9] * 4), longest_tokens=3000)], None)
    alone, together = (one.readiness for one in found.variants)
    assert "none for: the text does not fit the context" in {check.told for check in alone.checks}
    assert all(one.to for one in together.fallbacks)


def test_one_variant_that_passes_the_gates_is_enough_and_the_cheapest_is_chosen():
    cases = cases_of(["refund"] * 40, half_hard(40))
    weak = local(["refund", "hours"] * 20, [0.9, 0.1] * 20)
    found = judge(question(cases, ["accuracy>=0.9"], p95_ms=5000.0), [asked(weak)], target(["refund"] * 40))
    assert (found.passed, found.chosen, found.go) == (True, "small hybrid", True)
    assert [one.passed for one in found.variants] == [False, True, True]
    assert found.picture is not None
    found = judge(question(cases, ["accuracy>=0.9"]), [asked(weak)], None)
    assert not found.passed


def test_without_labels_agreement_with_the_cloud_is_told_and_no_accuracy():
    cases = tuple(Case(line=n, input=f"i{n}", answers=()) for n in range(4))
    found = judge(
        question(cases, ["agreement>=0.7"]),
        [asked(local(["refund", "refund", "hours", "refund"], [0.9] * 4))],
        target(["refund", "refund", "hours", "hours"]),
    )
    first = found.variants[0].scores
    assert (first.accuracy, first.agreement.value, first.by_tag) == (None, 0.75, {})
    assert found.passed
    assert not found.go
    assert any("no accuracy" in note for note in found.notes)


# --- the file --------------------------------------------------------------------------


def written_cases(tmp_path, *rows):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_cases_carry_tags_and_earlier_answers(tmp_path):
    path = written_cases(
        tmp_path,
        {"input": "money back", "label": "refund", "tag": "hard", "cloud": "refund"},
        {"input": "open?", "label": "hours", "tags": ["frequent", "short"]},
    )
    found = read_cases(path, MAIL)
    assert [case.tags for case in found.found] == [("hard",), ("frequent", "short")]
    assert found.found[0].cloud == "refund"
    assert found.tags == ("hard", "frequent", "short")
    assert any("line 2" in text for text in found.notices)
    free = read_cases(written_cases(tmp_path, {"input": "a", "cloud": "refund"}, {"input": "b", "cloud": "x"}), MAIL)
    assert not free.labelled


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "no examples"),
        ([{"input": "a", "label": "moon"}, {"input": "b", "label": "refund"}], "line 1"),
        ([{"input": "a", "label": "refund"}, {"input": "b"}], 'no "label": line 2'),
        ([{"input": "a", "label": "refund", "tag": "two words"}], "line 1: a tag"),
        ([{"input": "a", "label": "refund", "tags": "hard"}], "line 1: a tag"),
        (["{"], "line 1"),
        ([{"input": "a", "label": "moon"}], "another task"),
    ],
)
def test_what_is_wrong_with_a_case_is_named_by_line(tmp_path, rows, says):
    with pytest.raises(BadExamples, match=says):
        read_cases(written_cases(tmp_path, *rows), MAIL)
