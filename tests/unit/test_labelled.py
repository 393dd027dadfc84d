"""How often a model finds the right label of a user's own examples."""

import json

import pytest

from agent.classification import Classifier
from agent.errors import EngineFailed, InvalidRequest
from agent.evaluation.labelled import read_task, solve, wilson
from agent.evaluation.steps import Steps
from agent.scores import Scores
from agent.types import Failure, FailureKind


class Engine:
    """Likes the label whose name is in the text."""

    def __init__(self):
        self.asked = 0

    async def score(self, request, labels, *, messages=None, hidden=False):
        text = (messages or request.messages)[-1].content
        self.asked += messages is None
        if text == "crash":
            return Scores(failure=Failure(FailureKind.CRASH, "it is gone"))
        return Scores(
            logprobs=tuple(-1.0 if label in text else -3.0 for label in labels),
            token_counts=(1,) * len(labels),
            mass=0.9,
            model_digest="d",
        )


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(right=8):
    good = [{"text": f"a red car {at}", "label": "red"} for at in range(right)]
    return good + [{"text": f"a red bus {at}", "label": "blue"} for at in range(10 - right)]


async def test_accuracy_with_its_interval_and_what_the_commonest_label_would_give(tmp_path):
    task = read_task(write(tmp_path / "cars.jsonl", rows()))
    steps, told = Steps(), []
    engine = Engine()
    figures = await solve(task, "model", Classifier(engine), steps, told.append)
    assert (figures.accuracy.value, figures.majority, figures.labels, figures.examples) == (0.8, 0.8, 2, 10)
    assert figures.accuracy.low == pytest.approx(0.4902, abs=1e-4)
    assert figures.accuracy.high == pytest.approx(0.9433, abs=1e-4)
    assert told == ["cars.jsonl: 10 of 10 labelled, 8 right"]
    assert await solve(task, "model", Classifier(engine), steps, told.append) == figures
    assert engine.asked == 10  # the second time nothing is asked again


def test_the_interval_holds_at_the_ends():
    assert wilson(0, 20).low == 0
    assert wilson(0, 20).high == pytest.approx(0.1611, abs=1e-4)
    assert wilson(20, 20).high == 1


async def test_a_failure_is_not_a_wrong_answer(tmp_path):
    task = read_task(write(tmp_path / "cars.jsonl", [*rows(), {"text": "crash", "label": "red"}]))
    with pytest.raises(EngineFailed, match="example 11: it is gone"):
        await solve(task, "model", Classifier(Engine()), Steps(), lambda _: None)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (rows()[:9], "9 examples"),
        ([*rows(), {"text": "no label"}], "line 11: .*label"),
        ([*rows(), {"text": "x", "label": " "}], "line 11: the label is empty"),
        ([*rows(), {"text": "x", "label": "red", "id": 1}], "line 11"),
        (rows(10), "1 labels"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, lines, said):
    with pytest.raises(InvalidRequest, match=said):
        read_task(write(tmp_path / "bad.jsonl", lines))
