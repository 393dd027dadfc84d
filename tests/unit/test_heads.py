"""Heads: fitted with numpy in a child, applied in pure Python here; both must say the same."""

import math
import subprocess
from array import array

import msgspec
import numpy as np
import pytest

from agent import executable
from agent.confidence import fitting
from agent.confidence import logistic as numeric
from agent.confidence.fit_order import Fitted, Order
from agent.confidence.heads import AppliedHead, Feature, Head, Layer, centred, text_digest

RANDOM = np.random.default_rng(3)


def points(count=120, labels=3, width=8, apart=1.2):
    answers = np.arange(count) % labels
    centres = np.random.default_rng(1).normal(size=(labels, width)) * apart
    return centres[answers] + RANDOM.normal(size=(count, width)), answers


def raw(values):
    return values.astype("<f4").tobytes()


def order(values, answers, **more):
    return Order(labels=int(answers.max()) + 1, answers=tuple(map(int, answers)), embedding=raw(values), **more)


def head_of(fitted, labels):
    return Head(
        task="t", task_digest="d", labels=labels, feature=fitted.feature, embedding=fitted.embedding,
        hidden=fitted.hidden, scores=fitted.scores, temperature=fitted.temperature,
    )  # fmt: skip


def test_the_child_fits_and_this_process_applies_the_same():
    values, answers = points()
    scores = np.eye(3)[answers] * 1.4 + RANDOM.normal(size=(len(answers), 3))
    rows = [centred(row) for row in scores.tolist()]
    asked = order(values, answers, scores=array("f", [n for row in rows for n in row]).tobytes())
    child = subprocess.run(
        executable.command("fit"), input=msgspec.msgpack.encode(asked), capture_output=True, check=True
    )
    fitted = msgspec.msgpack.decode(child.stdout, type=Fitted)
    assert [one.feature for one in fitted.compared] == [Feature.EMBEDDING, Feature.SCORES, Feature.BOTH]
    assert fitted.feature is Feature.BOTH
    applied = AppliedHead(head_of(fitted, ("a", "b", "c")))
    assert applied.dimensions == 8
    vector, told = values[5].astype("<f4"), rows[5]

    def logits(layer, features):
        weights = np.frombuffer(layer.weights, "<f4").reshape(3, -1).astype(float)
        return numeric.log_softmax((weights @ features + np.array(layer.bias))[None])[0]

    mean = (logits(fitted.embedding, vector) + logits(fitted.scores, np.array(told))) / 2 / fitted.temperature
    expected = np.exp(numeric.log_softmax(mean[None]))[0]
    assert applied.probabilities("", vector.tolist(), scores[5].tolist()) == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_head_knows_what_is_unlike_all_that_taught_it():
    values, answers = points(apart=3.0)
    fitted = fitting.fit(order(values, answers))
    head = AppliedHead(msgspec.structs.replace(head_of(fitted, ("a", "b", "c")), familiarity=fitted.familiarity))
    like, _ = points(count=300, apart=3.0)
    assert sum(map(head.is_familiar, like.tolist())) >= 0.95 * len(like)
    directions = np.stack([values[answers == label].mean(axis=0) for label in range(3)])
    unlike = RANDOM.normal(size=(300, 8)) - 6 * directions.sum(axis=0)
    assert sum(map(head.is_familiar, unlike.tolist())) <= 0.02 * len(unlike)
    assert not head.is_familiar([0.0] * 8)
    assert not head.is_familiar([math.nan] * 8)
    assert AppliedHead(head_of(fitted, ("a", "b", "c"))).is_familiar([0.0] * 8)  # of a head that kept nothing


def test_each_feature_and_every_average_are_compared_and_the_cheapest_good_one_is_kept():
    _, answers = points(120)
    signal = RANDOM.normal(size=(len(answers), 30))
    signal[:, :3] += np.eye(3)[answers] * 5
    noise = RANDOM.normal(size=(len(answers), 3))
    fitted = fitting.fit(order(noise, answers, hidden=raw(100 + 7 * signal), scores=raw(noise)))
    assert [one.feature for one in fitted.compared] == [
        Feature.EMBEDDING, Feature.HIDDEN, Feature.SCORES, Feature.EMBEDDING_HIDDEN, Feature.BOTH,
        Feature.HIDDEN_SCORES, Feature.ALL,
    ]  # fmt: skip
    assert fitted.feature is Feature.HIDDEN
    assert (fitted.embedding, fitted.scores) == (None, None)
    head = AppliedHead(head_of(fitted, ("a", "b", "c")))
    states = (100 + 7 * signal).astype("<f4").tolist()
    told = [head.probabilities("", (), (), state) for state in states]
    assert np.mean(np.argmax(told, axis=1) == answers) > 0.9
    assert head.probabilities("", (), (), [math.inf] * 30) == ()
    plain = head_of(fitted, ("a", "b", "c"))
    assert plain.id != msgspec.structs.replace(plain, hidden=fitted.hidden.__class__(weights=b"", bias=())).id


def test_a_head_of_an_earlier_release_keeps_its_name():
    layer = Layer(weights=array("f", [1, 0, 0, 1]).tobytes(), bias=(0.0, 0.0))
    head = Head(task="t", task_digest="d", labels=("a", "b"), feature=Feature.EMBEDDING, embedding=layer)
    assert head.id == "ff22d296f57f571a"


def test_the_logistic_fit_is_where_its_gradient_ends():
    values, answers = points(60)
    weights, bias = numeric.logistic(values, answers, 3, 10.0)
    told = np.exp(numeric.log_softmax(values @ weights.T + bias)) - np.eye(3)[answers]
    assert np.abs(10.0 * told.T @ values + weights).max() / (10.0 * 60) < 2e-4
    assert np.abs(told.sum(axis=0)).max() / 60 < 2e-4


def test_the_temperature_makes_probabilities_true():
    logits = RANDOM.normal(size=(4000, 4)) * 2
    chosen = np.exp(numeric.log_softmax(logits)).cumsum(axis=1)
    answers = (RANDOM.random((4000, 1)) > chosen).sum(axis=1)
    assert numeric.fit_temperature(logits * 3, answers) == pytest.approx(3, rel=0.1)


def test_features_that_help_nothing_are_left_out():
    values, answers = points()
    noise = RANDOM.normal(size=(len(answers), 3))
    assert fitting.fit(order(values, answers, scores=raw(noise))).feature is Feature.EMBEDDING
    assert fitting.fit(order(RANDOM.normal(size=values.shape), answers, scores=raw(np.eye(3)[answers]))).feature in {
        Feature.SCORES,
        Feature.BOTH,
    }


def test_out_of_fold_scores_know_nothing_of_their_example():
    """Pure noise: what taught itself would look right, what did not is right one time in three."""
    values, answers = RANDOM.normal(size=(150, 100)), np.arange(150) % 3
    fitted = fitting.fit(order(values, answers))
    assert fitted.compared[0].accuracy < 0.5
    weights = np.frombuffer(fitted.embedding.weights, "<f4").reshape(3, -1)
    assert np.mean((values @ weights.T).argmax(axis=1) == answers) > 0.9


def test_folds_hold_every_label():
    answers = np.repeat(np.arange(7), 5)
    folds = numeric.stratified_folds(answers, 5, 0)
    assert all(len(set(folds[answers == label])) == 5 for label in range(7))


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (np.full((20, 4), np.nan), "not finite"),
        (np.full((20, 4), np.inf), "not finite"),
        (np.zeros((3, 4)), "are not of 20"),
    ],
)
def test_features_that_are_no_numbers_are_refused(values, what):
    answers = np.arange(20) % 2
    with pytest.raises(ValueError, match=what):
        fitting.fit(order(values, answers))
    child = subprocess.run(
        executable.command("fit"), input=msgspec.msgpack.encode(order(values, answers)), capture_output=True, check=False
    ) if what == "are not of 20" else None  # fmt: skip
    assert child is None or (child.returncode == 1 and what.encode() in child.stderr)


def test_nothing_to_fit_is_refused():
    with pytest.raises(ValueError, match="no features"):
        fitting.fit(Order(labels=2, answers=(0, 1)))


def test_a_head_says_nothing_of_figures_that_are_none():
    layer = Layer(weights=array("f", [1, 0, 0, 1]).tobytes(), bias=(0.0, 0.0))
    head = AppliedHead(Head(task="t", task_digest="d", labels=("a", "b"), feature=Feature.EMBEDDING, embedding=layer))
    assert head.probabilities("", (math.nan, 1.0)) == ()
    assert sum(head.probabilities("", (2.0, 1.0))) == pytest.approx(1)
    with pytest.raises(ValueError, match="3 features came to a head of 2"):
        head.probabilities("", (1.0, 2.0, 3.0))
    for weights, bias in ((array("f", [math.nan] * 4), (0.0, 0.0)), (array("f", [1.0] * 4), (0.0,))):
        with pytest.raises(ValueError, match=r"finite|not of 2 labels"):
            AppliedHead(msgspec.structs.replace(head.head, embedding=Layer(weights=weights.tobytes(), bias=bias)))


def test_an_input_is_known_again_whatever_its_spaces_and_case():
    assert text_digest(" Where is\nMY card") == text_digest("where is my card")
    assert text_digest("a") != text_digest("b")


@pytest.mark.parametrize("misleading", [False, True])
def test_names_of_labels_teach_where_they_help_and_nowhere_else(misleading):
    chance = np.random.default_rng(3)
    centres = np.eye(6, 24)
    answers = np.repeat(np.arange(6), 4)
    values = centres[answers] + chance.normal(0, 0.35, (24, 24))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    names = np.roll(centres, 1, axis=0) if misleading else centres
    fitted = fitting.fit(order(values, answers, names=raw(names)))
    assert fitted.by_names is not misleading
    assert len(fitted.probabilities) == 4 * 24 * 6  # of the examples alone
