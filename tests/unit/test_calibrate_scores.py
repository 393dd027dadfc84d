"""A task without a head: the examples that correct the labels' scores are not among those that certify."""

from array import array

import pytest

from agent.cli import calibrate, task_signals
from agent.errors import InvalidRequest, NotCertified
from agent.evaluation.examples import Example
from agent.tasks import TaskSpec

SPEC = TaskSpec(name="mail", labels={"a": "", "b": ""})
EXAMPLES = [Example(line, f"text {line}", "a") for line in range(1, 101)]


def by_label_scores(monkeypatch, scores_of, near_a=None):
    def rows(client, name, signal, inputs, digest, model):
        known = {"model": "m", "model_digest": "d", "runtime": "r"}
        return [{"logprobs": scores_of(index), **known} for index, _ in enumerate(inputs)]

    def vectors(client, name, inputs):
        found = task_signals.Vectors()
        found.model_digest, found.dimensions = "e" * 64, 2
        for text in inputs:
            found.raw += array("f", [1, 0] if text in {"a", *near_a} else [0, 1]).tobytes()
        return found

    def no_encoder():
        raise InvalidRequest("no model minilm")

    monkeypatch.setattr(task_signals, "rows", rows)
    monkeypatch.setattr(task_signals, "vectors", vectors if near_a is not None else lambda *_: no_encoder())
    return calibrate._by_label_scores(None, SPEC, EXAMPLES, None)


def test_what_has_no_score_is_not_made_up_for_by_an_example_that_certifies(monkeypatch):
    judged, _, earlier = by_label_scores(monkeypatch, lambda at: [None, None] if at < 5 else [-1.0, -2.0 - (at >= 30)])
    assert len(judged) == 70
    assert earlier == (-1.0, -2.0)


def test_a_model_that_scores_none_of_them_promises_nothing(monkeypatch):
    with pytest.raises(NotCertified, match="scores no label"):
        by_label_scores(monkeypatch, lambda at: [None, None])


def test_how_like_the_labels_an_input_is_counts_as_it_does_in_requests(monkeypatch):
    judged, key, _ = by_label_scores(monkeypatch, lambda at: [-1.0, -2.0], near_a={"text 7", "text 8"})
    assert key.estimator == f"label_likeness@1/{'e' * 16}"
    assert {one.line: one.label for one in judged if one.label == "a"}.keys() <= {7, 8}
    alone, plain, _ = by_label_scores(monkeypatch, lambda at: [-1.0, -2.0])
    assert plain.estimator == "label_margin@1"
    assert {one.score for one in alone} == {0.0}
