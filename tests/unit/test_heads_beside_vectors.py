"""What stands beside a head's vectors: the words of a text and its nearest examples; fitted in numpy, applied without."""

import math
from array import array

import msgspec
import numpy as np
import pytest

from agent.confidence import calibration, fitting, labels
from agent.confidence.calibration import CalibrationKey
from agent.confidence.fit_order import Order
from agent.confidence.heads import AppliedHead, Feature, Head, Layer
from agent.confidence.logistic import log_softmax
from agent.confidence.neighbours import AppliedNeighbours, Neighbours
from agent.confidence.wording import BUCKETS, AppliedWording, Wording, folded, rarity_of, weighed

SAID = ("please play {}", "rate {} five stars", "book a table at {}")
NAMES = ("the blue hour", "old town", "winter light", "seven seas", "home again", "north gate", "a quiet day", "rain")


def units(values):
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def texts_of(answers):
    chance = np.random.default_rng(4)
    return tuple(SAID[answer].format(NAMES[chance.integers(8)]) for answer in answers)


def head_of(fitted, names):
    return Head(
        task="t", task_digest="d", labels=names, feature=fitted.feature, embedding=fitted.embedding,
        temperature=fitted.temperature, wording=fitted.wording, neighbours=fitted.neighbours,
    )  # fmt: skip


def order(values, answers, **more):
    return Order(
        labels=int(answers.max()) + 1,
        answers=tuple(map(int, answers)),
        embedding=values.astype("<f4").tobytes(),
        **more,
    )


def test_words_tell_what_vectors_are_blind_to():
    answers = np.arange(90) % 3
    blind = units(np.random.default_rng(0).normal(size=(90, 12)))
    texts = texts_of(answers)
    without = fitting.fit(order(blind, answers))
    fitted = fitting.fit(order(blind, answers, texts=texts))
    assert without.wording is None
    assert without.compared[0].accuracy < 0.6 < 0.9 < fitted.compared[0].accuracy
    head = AppliedHead(head_of(fitted, ("play", "rate", "table")))
    told = [head.probabilities(f"PLEASE, play {name}!", vector) for name, vector in zip(NAMES, blind, strict=False)]
    assert [max(row) == row[0] for row in told] == [True] * 8


def test_a_label_of_two_things_is_told_by_its_nearest_examples():
    chance = np.random.default_rng(5)
    corners = np.array([[1, 1, 0, 0], [-1, -1, 0, 0], [1, -1, 0, 0], [-1, 1, 0, 0]], dtype=float)
    of = np.arange(120) % 4
    values = units(corners[of] + chance.normal(0, 0.15, (120, 4)))
    answers = of // 2  # no line parts them
    fitted = fitting.fit(order(values, answers))
    assert fitted.neighbours is not None
    assert fitted.compared[0].accuracy > 0.95
    head = AppliedHead(head_of(fitted, ("same", "other")))
    told = [head.probabilities("", vector) for vector in units(corners).tolist()]
    assert [row.index(max(row)) for row in told] == [0, 0, 1, 1]
    plain = AppliedHead(msgspec.structs.replace(head.head, neighbours=None))
    assert plain.id != head.id


def test_what_gains_nothing_is_left_out():
    answers = np.arange(90) % 3
    values = units(np.eye(3, 12)[answers] * 4 + np.random.default_rng(1).normal(size=(90, 12)) * 0.3)
    fitted = fitting.fit(order(values, answers, texts=("the same words",) * 90))
    assert (fitted.wording, fitted.neighbours) == (None, None)


def test_both_are_applied_here_as_they_were_fitted():
    """The matrices say for every example what this process says, but for the rounding of what is kept."""
    number = np.arange(120)
    corners = np.array([[1, 1, 0, 0], [-1, -1, 0, 0], [1, -1, 0, 0], [-1, 1, 0, 0]], dtype=float)
    values = units(corners[number % 4] + np.random.default_rng(2).normal(0, 0.15, (120, 4)))
    said = number // 4 % 2  # the words tell this half of a label, the neighbours the other
    answers = number % 4 // 2 + 2 * said
    texts = texts_of(said)
    fitted = fitting.fit(order(values, answers, texts=texts))
    assert fitted.wording
    assert fitted.neighbours
    head = AppliedHead(head_of(fitted, ("a", "b", "c", "d")))
    weights = np.frombuffer(fitted.embedding.weights, "<f4").reshape(4, -1)
    of_words = np.frombuffer(fitted.wording.weights, "<f4").reshape(4, -1)
    rarity = rarity_of([folded(text) for text in texts])
    rows = np.zeros((120, BUCKETS))
    for row, text in zip(rows, texts, strict=True):
        for bucket, value in weighed(folded(text), rarity).items():
            row[bucket] = value
    logits = values @ weights.T + np.array(fitted.embedding.bias) + rows @ of_words.T
    of = np.repeat(np.arange(4), fitted.neighbours.counts)
    kept = np.frombuffer(fitted.neighbours.vectors, "i1").reshape(len(of), -1)
    grown = np.exp(30 * (units(values) @ units(kept.astype(float)).T)) @ np.eye(4)[of]
    logits += fitted.neighbours.weight * np.log(grown / np.array(fitted.neighbours.counts))
    expected = np.exp(log_softmax(logits / fitted.temperature))
    told = [head.probabilities(text, vector) for text, vector in zip(texts, values.tolist(), strict=True)]
    assert np.abs(np.array(told) - expected).max() < 0.005


def test_only_the_likeliest_labels_are_asked_for_their_neighbours():
    unit = array("b", [127, 0])
    kept = Neighbours(
        vectors=unit.tobytes() * 12, scales=array("f", [1 / 127] * 12).tobytes(), counts=(1,) * 12, weight=1.0
    )
    logits = [-float(label) for label in range(12)]
    told = AppliedNeighbours(kept, 12).beside(logits, (2.0, 0.0))
    assert told == pytest.approx([logit + 30 for logit in logits], abs=1e-5)
    away = msgspec.structs.replace(kept, vectors=unit.tobytes() * 10 + array("b", [-127, 0]).tobytes() * 2)
    assert AppliedNeighbours(away, 12).beside(logits, (2.0, 0.0)) == pytest.approx(told, abs=1e-5)
    assert AppliedNeighbours(kept, 12).beside(logits, (0.0, 0.0)) == logits


def test_where_every_answer_is_right_scores_still_differ():
    answers = np.arange(90) % 3
    values = units(np.eye(3, 12)[answers] * 4 + np.random.default_rng(1).normal(size=(90, 12)) * 0.3)
    fitted = fitting.fit(order(values, answers))
    assert fitted.compared[0].accuracy == 1.0
    told = np.frombuffer(fitted.probabilities, "<f4").reshape(90, 3).max(axis=1)
    assert told.min() > 0.9
    assert told.max() < 0.99999


@pytest.mark.parametrize("text", ["", " \n", "!?", "日本語のテキスト", "\ud800", "x" * 100_000])
def test_any_text_has_a_wording(text):
    wording = Wording(rarity=array("f", [1.0] * BUCKETS).tobytes(), weights=array("f", [0.5] * BUCKETS * 2).tobytes())
    told = AppliedWording(wording, 2).logits(text)
    assert len(told) == 2
    assert all(map(math.isfinite, told))
    assert folded(text.upper()) == folded(text)


def test_malformed_parts_are_refused():
    layer = Layer(weights=array("f", [1, 0, 0, 1]).tobytes(), bias=(0.0, 0.0))
    head = Head(task="t", task_digest="d", labels=("a", "b"), feature=Feature.EMBEDDING, embedding=layer)
    full = array("f", [1.0] * BUCKETS).tobytes()
    near = Neighbours(vectors=bytes(4), scales=array("f", [1.0] * 2).tobytes(), counts=(1, 1), weight=1.0)
    AppliedHead(msgspec.structs.replace(head, neighbours=near))
    nan = array("f", [math.nan] * 2).tobytes()
    wrong = [
        {"wording": Wording(rarity=full, weights=full)},
        {"wording": Wording(rarity=full[4:], weights=full * 2)},
        {"wording": Wording(rarity=full, weights=full + full[4:] + nan[:4])},
        {"neighbours": msgspec.structs.replace(near, counts=(2, 1))},
        {"neighbours": msgspec.structs.replace(near, counts=(1,))},
        {"neighbours": msgspec.structs.replace(near, counts=(3, -1))},
        {"neighbours": msgspec.structs.replace(near, scales=nan)},
        {"neighbours": msgspec.structs.replace(near, weight=math.inf)},
        {"neighbours": near, "feature": Feature.SCORES, "embedding": None, "scores": layer},
    ]
    for parts in wrong:
        with pytest.raises(ValueError, match=r"not of 2 labels|not finite|reads none"):
            AppliedHead(msgspec.structs.replace(head, **parts))


def test_a_calibration_of_an_earlier_estimator_promises_nothing():
    key = CalibrationKey(
        task_digest="d", model="m", model_digest="e", runtime="onnx", estimator=f"{labels.HEAD_ESTIMATOR}:head"
    )
    before = msgspec.structs.replace(key, estimator="head_probability@1:head")
    assert calibration.differences(before, key) == ["estimator or head"]
