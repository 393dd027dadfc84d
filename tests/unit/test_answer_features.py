"""Figures of written answers, and the small models of them: fitted with numpy, applied without."""

import json
import math
from array import array

import numpy as np
import pytest

from agent.confidence.answer_features import FIELD_FEATURES, Shown, features, field_features
from agent.confidence.appraiser_fitting import STRENGTHS, auroc, fit
from agent.confidence.appraisers import Appraiser, Weights, check, field_figures
from agent.confidence.fields import field_judge
from agent.confidence.fit_order import Judged
from agent.structure import FormatKind, OutputFormat, ToolCall
from agent.tasks import TaskKind
from agent.types import Generation, InferenceRequest, Token


def token(text, logprob=-0.1, *, runner_up=-3.0, forced=False):
    return Token(1, text.encode(), logprob, runner_up, 0.2, forced=forced)


def generation(*tokens, **more):
    text = b"".join(one.text_bytes for one in tokens).decode()
    return Generation(text=text, tokens=tokens, finish_reason="stop", **more)


def test_the_token_that_ends_a_text_counts():
    answer = generation(token("7"), token(" pm", -0.5), end=token("", -2.0, runner_up=-0.4))
    found = features(TaskKind.TEXT, "at 7 pm", answer)
    assert found["sum_logprob"] == pytest.approx(-2.6)
    assert found["min_margin"] == pytest.approx(-1.6)
    assert found["end_logprob"] == -2.0
    assert (found["copied"], found["incomplete"]) == (1, 0)


def test_demonstrations_are_compared_with_the_answer():
    shown = Shown(("8 pm", "Ann"), 0.7)
    parroted = features(TaskKind.TEXT, "at 7", generation(token("8 pm")), shown)
    assert (parroted["parroted"], parroted["like_shown"], parroted["closeness"]) == (1, 0.5, 0.7)
    assert features(TaskKind.TEXT, "at 8 pm", generation(token("8 pm")), shown)["parroted"] == 0
    assert "parroted" not in features(TaskKind.TEXT, "at 7", generation(token("8 pm")))


def test_of_a_call_only_names_and_values_count():
    forced = {"forced": True}
    tokens = (
        token('<tool_call>\n{"name": "', **forced), token("pay", -0.3), token('", "arguments": ', **forced),
        token('{"euros": ', -9.0), token("12", -0.7), token("}", -0.01), token("}\n</tool_call>", **forced),
    )  # fmt: skip
    call = ToolCall(id="c", name="pay", arguments='{"euros": 12}')
    found = features(TaskKind.TOOL, "pay 12 euros", generation(*tokens, tool_calls=(call,)))
    assert found["name_logprob"] == pytest.approx(-0.3)
    assert found["value_logprob"] == pytest.approx(-0.71)  # a number ends where something else begins
    assert found["sum_logprob"] == pytest.approx(-1.01)
    assert (found["calls"], found["traceable"]) == (1, 1)
    other = ToolCall(id="c", name="pay", arguments='{"euros": 99}')
    assert features(TaskKind.TOOL, "pay 12", generation(*tokens, tool_calls=(other,)))["traceable"] == 0


def test_of_json_only_the_values_count_and_each_field_has_its_figures():
    tokens = (
        token('{"name": ', forced=True), token('"Ann"', -0.4), token(', "age": ', forced=True),
        token("null", -1.5), token("}", forced=True),
    )  # fmt: skip
    form = OutputFormat(kind=FormatKind.JSON_OBJECT)
    request = InferenceRequest(id="", model="", messages=(), response_format=form, received_at_ms=0)
    answer = field_judge("lowest_tenth")(request, generation(*tokens))
    found = features(TaskKind.EXTRACT, "Ann came", answer)
    assert found["sum_logprob"] == pytest.approx(-1.9)
    assert (found["given"], found["traceable"]) == (1, 1)
    rows = field_features("Ann came", answer)
    assert set(rows) == {"/name", "/age"}
    assert dict(zip(FIELD_FEATURES, rows["/age"], strict=True))["null"] == 1
    assert field_figures(rows["/age"], FIELD_FEATURES, "/list/3/age")["at /list/*/age"] == 1


@pytest.mark.parametrize(
    "answer",
    [
        generation(),
        generation(token('{"a"', forced=True)),
        generation(token("x", math.nan)),
    ],
)
def test_without_a_choice_or_a_number_there_is_no_signal(answer):
    assert features(TaskKind.TEXT, "x", answer) == {}


def judged(count=200, seed=0):
    chance = np.random.default_rng(seed)
    right = chance.random(count) < 0.5
    figures = np.stack([right + chance.normal(size=count), chance.normal(size=count), np.full(count, 3.0)], axis=1)
    return Judged(
        names=("good", "noise", "same"), figures=figures.astype("<f8").tobytes(), right=tuple(map(bool, right))
    )


def test_a_fit_reads_what_tells_right_from_wrong_and_is_the_same_without_numpy():
    order = judged()
    found = fit(order)
    assert found.weights.names == ("good", "noise")  # what is the same of all is left out
    assert abs(found.weights.weights[0]) > 3 * abs(found.weights.weights[1])
    assert 0.65 < found.auroc < 0.9
    figures = np.frombuffer(order.figures).reshape(-1, 3)
    told = [found.weights.probability(dict(zip(order.names, row, strict=True))) for row in figures.tolist()]
    assert all(0 < one < 1 for one in told)
    assert auroc(np.array(told), np.array(order.right)) >= found.auroc - 0.02
    standard = (figures[:, :2] - found.weights.means) / found.weights.scales
    by_numpy = 1 / (1 + np.exp(-(np.clip(standard, -4, 4) @ found.weights.weights + found.weights.bias)))
    assert np.allclose(told, by_numpy, atol=1e-12)


def test_a_fit_is_where_the_penalised_likelihood_is_highest():
    order = judged()
    found = fit(order)
    figures = np.frombuffer(order.figures).reshape(-1, 3)[:, :2]
    standard = np.clip((figures - figures.mean(axis=0)) / figures.std(axis=0), -4, 4)
    weights = np.array(found.weights.weights)
    rest = 1 / (1 + np.exp(-(standard @ weights + found.weights.bias))) - order.right
    assert abs(rest.sum()) < 0.05
    # Two rows of weights with a penalty each are one row of their difference with half of it.
    slopes = {strength: strength * (rest @ standard) + weights / 2 for strength in STRENGTHS}
    assert min(float(np.abs(slope).max()) for slope in slopes.values()) < 0.01


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"right": (True,) * 200}, "all 200 answers are right"),
        ({"right": (True, *(False,) * 199)}, "too few examples"),
        ({"figures": array("d", [math.nan] * 600).tobytes()}, "not 3 finite ones"),
        ({"figures": b""}, "not 3 finite ones"),
    ],
)
def test_what_cannot_teach_is_refused(change, says):
    order = judged()
    whole = {name: getattr(order, name) for name in order.__struct_fields__}
    with pytest.raises(ValueError, match=says):
        fit(Judged(**{**whole, **change}))


def test_a_figure_that_is_missing_is_no_signal_and_one_far_out_is_bounded():
    weights = Weights(names=("a",), means=(0.0,), scales=(1.0,), weights=(1.0,), bias=0.0)
    assert weights.probability({"b": 1.0}) is None
    assert weights.probability({"a": math.nan}) is None
    assert weights.probability({"a": 1e30}) == weights.probability({"a": 4.0}) < 1


def test_an_appraiser_is_named_by_what_it_does():
    weights = Weights(names=("a",), means=(0.0,), scales=(1.0,), weights=(1.0,), bias=0.0)
    one = Appraiser(
        task="x", task_digest="t", model="m", model_digest="d", runtime="r", version=1, answer=weights, taught=3
    )
    whole = json.loads(json.dumps({name: getattr(one, name) for name in ("task", "task_digest", "model", "runtime")}))
    check(one)
    assert Appraiser(**whole, model_digest="d", version=1, answer=weights).id == one.id
    assert Appraiser(**whole, model_digest="e", version=1, answer=weights).id != one.id
