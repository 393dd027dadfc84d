"""Examples: what is wrong is named by line, before anything is done."""

import json

import pytest

from agent.errors import BadExamples
from agent.evaluation.examples import MOST_EXAMPLES, check_several_labels, parse_examples, read_examples
from agent.tasks import Match, TaskKind, TaskSpec

SPEC = TaskSpec(name="mail", labels={"refund": "", "card lost": ""})
TEXT = TaskSpec(name="say", kind=TaskKind.TEXT)


def lines(*rows):
    return [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]


def one(text, label="refund"):
    return {"input": text, "label": label}


def fault(*rows, spec=SPEC):
    with pytest.raises(BadExamples) as raised:
        parse_examples(lines(*rows), "x.jsonl", spec)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_is_right_is_read_with_its_line():
    found = parse_examples(
        lines(one("a"), b"", one("b", "card lost"), {"text": "c", "label": "refund", "id": 7}), "x", SPEC
    )
    assert [(e.line, e.input, e.answer) for e in found.found] == [
        (1, "a", "refund"),
        (3, "b", "card lost"),
        (4, "c", "refund"),
    ]
    assert found.notices == ()


def test_everything_that_is_wrong_is_named_at_once():
    told = fault(
        one("a"), one("  "), b"{", b"\xff", b"[1]", {"label": "refund"}, {"input": 3, "label": "refund"}, {"input": "x"},
        one("b", "refnd"), one("A ", "card lost"), b'{"input": "\\ud800", "label": "refund"}',
    )  # fmt: skip
    assert "an empty input: line 2" in told
    assert "not a JSON object in UTF-8: lines 3, 4, 5" in told
    assert 'no "input" that is a text: lines 6, 7' in told
    assert 'no "label": line 8' in told
    assert "a label that the task has not: line 9 ('refnd', did you mean 'refund'?)" in told
    assert "the same input with another answer: line 10 (first on line 1)" in told
    assert "half of a surrogate pair: line 11" in told


def test_many_lines_of_one_fault_are_counted():
    assert "lines 2, 3, 4, 5, 6 and 15 more" in fault(one("a"), *[one("")] * 20)


def test_a_data_set_of_another_task_is_recognised():
    assert "another task" in fault(one("a", "pos"), one("b", "neg"))


def test_repeats_count_once_and_are_told():
    found = parse_examples(lines(one("a"), one("b"), one(" A")), "x", SPEC)
    assert len(found.found) == 2
    assert "line 3" in found.notices[0]


def test_mixed_writing_systems_are_told():
    found = parse_examples(lines(one("where is my card"), one("где моя карта"), one("123"), one("Größe")), "x", SPEC)
    assert "line 2 are not in Latin" in found.notices[0]


def test_empty_huge_and_missing_files(tmp_path):
    assert "no examples" in fault(b"")
    assert f"at most {MOST_EXAMPLES}" in fault(*[b"{}"] * 100_000)
    with pytest.raises(BadExamples, match="cannot be read"):
        read_examples(tmp_path / "none.jsonl", SPEC)


def test_one_class_only_is_refused():
    found = parse_examples(lines(one("a"), one("b")), "x", SPEC).found
    with pytest.raises(BadExamples, match="all 2 examples have the label 'refund'"):
        check_several_labels(found, "x")


def test_other_kinds_have_answers_and_a_share_of_escalations_needs_none():
    as_json = TaskSpec(name="say", kind=TaskKind.TEXT, match=Match.FIELDS)
    found = parse_examples(lines({"input": "a", "answer": {"b": [1]}}, {"input": "c", "answer": "d"}), "x", as_json)
    assert [e.answer for e in found.found] == ['{"b": [1]}', "d"]
    assert 'no "answer": line 1' in fault({"input": "a", "label": "x"}, spec=TEXT)
    assert parse_examples(lines({"input": "a"}), "x", SPEC, answered=False).found[0].answer is None
    half = lines({"input": "a", "label": next(iter(SPEC.labels))}, {"input": "b"})
    assert [one.answer for one in parse_examples(half, "x", SPEC, answered=False).found] == [None, None]
    assert parse_examples(half[:1], "x", SPEC, answered=False).found[0].answer in SPEC.labels


def test_a_task_that_compares_numbers_needs_one_in_each_answer():
    count = TaskSpec(name="count", kind=TaskKind.TEXT, match=Match.NUMERIC)
    right = [{"input": "a", "answer": 2}, {"input": "b", "answers": ["a few", "about 3"]}]
    assert len(parse_examples(lines(*right), "x", count).found) == 2
    judged = {"input": "d", "answer": "nobody", "right": False}
    told = fault(*right, {"input": "c", "answer": "J. Verne"}, judged, spec=count)
    assert told == "x.jsonl: an answer without a number, and the task compares numbers: line 3"


def test_written_answers_may_be_several_judged_or_calls():
    tool = TaskSpec(name="book", kind=TaskKind.TOOL)
    call = {"name": "book", "arguments": {"people": 2}}
    (several,) = parse_examples(lines({"input": "a", "answers": ["x", "y"]}), "x", TEXT).found
    (judged,) = parse_examples(lines({"input": "a", "answer": "x", "right": False}), "x", TEXT).found
    (called,) = parse_examples(lines({"input": "a", "answer": call, "tools": [{"type": "function"}]}), "x", tool).found
    (none,) = parse_examples(lines({"input": "a", "answer": []}), "x", tool).found
    assert (several.answers, several.verdict) == (("x", "y"), None)
    assert (judged.answers, judged.verdict) == (("x",), False)
    assert (json.loads(called.answer), called.tools) == ([call], ({"type": "function"},))
    assert none.answers == ("[]",)
    for row, spec, what in (
        ({"input": "a", "answers": ["x", "y"], "right": True}, TEXT, '"right" with several answers'),
        ({"input": "a", "answer": "x", "right": "yes"}, TEXT, "neither true nor false"),
        ({"input": "a", "answers": []}, TEXT, '"answers" is no list'),
        ({"input": "a", "answer": "no call"}, tool, 'no "answer"'),
        ({"input": "a", "answer": [{"arguments": {}}]}, tool, 'no "answer"'),
        ({"input": "a", "answer": [], "tools": {}}, tool, '"tools" is no list'),
    ):
        assert what in fault(row, spec=spec), row


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("row", ['{"input": "x", "answer": %s}', '{"input": "x", "answer": "y", "propensity": %s}'])
def test_a_number_that_is_none_is_named_by_its_line(row, number):
    with pytest.raises(BadExamples, match="a number that is not finite: line 2"):
        parse_examples([b'{"input": "a", "answer": "b"}', (row % number).encode()], "f", TEXT)


def test_written_answers_of_another_task_are_named_by_their_lines():
    fields = TaskSpec(
        name="who", kind=TaskKind.EXTRACT, schema={"type": "object", "properties": {"name": {}, "day": {}}}
    )
    book = {"type": "function", "function": {"name": "book"}}
    tool = TaskSpec(name="book", kind=TaskKind.TOOL, tools=(book,))
    for spec, right, wrong, why in (
        (TEXT, "two", {"name": "book"}, "no text, and task say compares texts: line 2"),
        (TEXT, 2, ["a"], "no text, and task say compares texts: line 2"),
        (fields, {"name": "Ann"}, {"people": 4}, r"none of the fields of task who \(name, day\): line 2"),
        (fields, '{"name": "Ann"}', 5, "none of the fields of task who"),
        (
            tool,
            {"name": "book", "arguments": {}},
            {"name": "rent", "arguments": {}},
            "a function that task book has not",
        ),
    ):
        rows = [{"input": "x", "answer": right}, {"input": "y", "answer": wrong}]
        with pytest.raises(BadExamples, match=why):
            parse_examples([json.dumps(row).encode() for row in rows], "f", spec)
        assert parse_examples([json.dumps(rows[0]).encode()], "f", spec).found
    own = {
        "input": "x",
        "answer": {"name": "rent", "arguments": {}},
        "tools": [{"type": "function", "function": {"name": "rent"}}],
    }
    assert parse_examples([json.dumps(own).encode()], "f", tool).found
    assert parse_examples([b'{"input": "x", "answer": []}'], "f", tool).found  # no call is wanted
    assert parse_examples([b'{"input": "x", "answer": {}}'], "f", fields).found
