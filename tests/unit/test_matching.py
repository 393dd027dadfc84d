import json

import pytest

from agent.evaluation import matching
from agent.tasks import Match, TaskKind, TaskSpec


@pytest.mark.parametrize(
    ("match", "answer", "wanted", "right"),
    [
        (Match.EXACT, "Paris", ["Paris"], True),
        (Match.EXACT, "paris", ["Paris"], False),
        (Match.EXACT, '{"b": 1, "a": 2}', ['{"a": 2, "b": 1}'], True),
        (Match.NORMALISED, " paris. ", ["London", "Paris"], True),
        (Match.NORMALISED, "Paris, France", ["Paris"], False),
        (Match.NUMERIC, "That makes 1,250 euros", ["1250.0"], True),
        (Match.NUMERIC, "3 apples and 4 pears", ["3"], False),
        (Match.NUMERIC, "none", ["3"], False),
        (Match.FIELDS, '{"a": "X", "b": null}', ['{"a": "x"}'], True),
        (Match.FIELDS, '{"a": "X", "b": 2}', ['{"a": "x"}'], False),
        (Match.FIELDS, "no JSON", ['{"a": "x"}'], False),
    ],
)
def test_when_an_answer_is_right(match, answer, wanted, right):
    assert matching.is_right(match, answer, wanted) is right


def test_fields_are_compared_by_f1():
    wanted = '{"a": "x", "b": 2, "c": [1, 2], "d": null}'
    assert matching.field_score('{"a": "x", "b": 2, "c": [1, 3]}', wanted) == pytest.approx(3 / 4)
    assert matching.field_score('{"a": null}', "{}") == 1
    assert matching.is_right(Match.FIELDS, '{"a": "x", "b": 2, "c": [1, 3]}', [wanted], field_f1=0.75)
    assert matching.fields_right('{"a": "x", "b": 3, "d": null}', wanted) == {"/a": True, "/b": False, "/d": True}
    assert matching.fields_right('{"a/b": true}', '{"a/b": 1}') == {"/a~1b": False}


def test_a_verdict_of_somebody_holds_for_that_answer_only():
    spec = TaskSpec(name="x", kind=TaskKind.TEXT)
    row = {"answer": "a nice letter", "tool_calls": []}
    assert matching.verdict(spec, ["A nice letter"], False, row) is False
    assert matching.verdict(spec, ["A nice letter"], True, row) is True
    assert matching.verdict(spec, ["another letter"], True, row) is None
    assert matching.verdict(spec, [], None, row) is None


def test_calls_are_compared_by_their_values():
    spec = TaskSpec(name="x", kind=TaskKind.TOOL)
    wanted = matching.calls_text([{"name": "f", "arguments": {"n": 1, "s": "a"}}])
    row = {"answer": "", "tool_calls": [{"name": "f", "arguments": json.dumps({"s": "a", "n": 1.0})}]}
    assert matching.verdict(spec, [wanted], None, row) is True
    assert matching.verdict(spec, [matching.calls_text([])], None, row) is False
    assert matching.verdict(spec, [matching.calls_text([])], None, {"answer": "hi", "tool_calls": []}) is True
    assert matching.calls_text([{"arguments": {}}]) == ""
