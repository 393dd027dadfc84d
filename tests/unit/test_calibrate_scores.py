"""A task without a head: the examples that correct the labels' scores are not among those that certify."""

import pytest

from agent.cli import calibrate, task_signals
from agent.errors import NotCertified
from agent.evaluation.examples import Example
from agent.tasks import TaskSpec

SPEC = TaskSpec(name="mail", labels={"a": "", "b": ""})
EXAMPLES = [Example(line, f"text {line}", "a") for line in range(1, 101)]


def by_label_scores(monkeypatch, scores_of):
    def rows(client, name, signal, inputs, digest, model):
        known = {"model": "m", "model_digest": "d", "runtime": "r"}
        return [{"logprobs": scores_of(index), **known} for index, _ in enumerate(inputs)]

    monkeypatch.setattr(task_signals, "rows", rows)
    return calibrate._by_label_scores(None, SPEC, EXAMPLES, None)


def test_what_has_no_score_is_not_made_up_for_by_an_example_that_certifies(monkeypatch):
    judged, _, earlier = by_label_scores(monkeypatch, lambda at: [None, None] if at < 5 else [-1.0, -2.0 - (at >= 30)])
    assert len(judged) == 70
    assert earlier == (-1.0, -2.0)


def test_a_model_that_scores_none_of_them_promises_nothing(monkeypatch):
    with pytest.raises(NotCertified, match="scores no label"):
        by_label_scores(monkeypatch, lambda at: [None, None])
