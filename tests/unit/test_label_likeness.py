"""How like the input each label is: what is asked of the encoder, and what holds where it cannot say."""

import asyncio

import pytest

from agent.classification import Classifier, sorting
from agent.confidence import labels as label_confidence
from agent.label_likeness import ENCODER, LabelLikeness, label_texts
from agent.scores import Scores, Vectors
from agent.types import Failure, FailureKind, InferenceRequest, RequestKind

WORDS = {"dog": (1.0, 0.0), "cat": (0.0, 1.0), "puppy": (0.8, 0.6)}
LABELS = ("cat", "dog")


class Engine:
    """Finds all labels equally likely; knows the vectors of three words."""

    def __init__(self):
        self.embedded, self.digest, self.failure, self.trained = [], "e" * 64, None, False

    async def score(self, request, labels, *, messages=None, hidden=False):
        figures = (-1.0,) * len(labels)
        return Scores(
            logprobs=figures, token_counts=(1,) * len(labels), mass=0.5, trained=self.trained, model_digest="d"
        )

    async def embed(self, model, texts, *, deadline_at_ms=None):
        self.embedded.append((model, *texts))
        if self.failure:
            return Vectors(failure=self.failure)
        return Vectors(vectors=tuple(WORDS[text] for text in texts), model=model, model_digest=self.digest)


def classified(engine, likeness, text="puppy"):
    request = InferenceRequest(
        id="1", kind=RequestKind.CLASSIFY, model="m", messages=sorting(text, LABELS), labels=LABELS, received_at_ms=0
    )
    return asyncio.run(Classifier(engine, likeness=likeness).run(request))


def test_the_label_nearest_to_the_input_is_chosen_where_the_model_cannot_tell():
    engine = Engine()
    found = classified(engine, LabelLikeness(engine))
    assert found.text == "dog"
    assert found.label_scores.likeness == pytest.approx((0.6, 0.8))
    assert label_confidence.judge(found).estimator == f"label_likeness@1/{'e' * 16}"


def test_labels_are_embedded_once():
    engine = Engine()
    likeness = LabelLikeness(engine)
    classified(engine, likeness)
    classified(engine, likeness, "cat")
    assert engine.embedded == [(ENCODER, "puppy", "cat", "dog"), (ENCODER, "cat")]


def test_vectors_of_another_encoder_are_not_compared():
    engine = Engine()
    likeness = LabelLikeness(engine)
    classified(engine, likeness)
    engine.digest = "f" * 64
    found = classified(engine, likeness)
    assert engine.embedded[-1] == (ENCODER, "puppy", "cat", "dog")
    assert found.label_scores.encoder == "f" * 64


def test_without_an_encoder_the_language_model_is_asked_alone():
    engine = Engine()
    engine.failure = Failure(FailureKind.REJECTED, "no model minilm", "model")
    found = classified(engine, LabelLikeness(engine))
    assert (found.failure, found.text, found.label_scores.likeness) == (None, "cat", ())
    assert label_confidence.judge(found).estimator == label_confidence.ESTIMATOR


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_input_is_like_no_label(text):
    engine = Engine()
    found = classified(engine, LabelLikeness(engine), text)
    assert (found.label_scores.likeness, engine.embedded) == ((), [])
    assert label_confidence.judge(found).score == 0


def test_a_model_made_for_the_labels_needs_no_second_opinion():
    engine = Engine()
    engine.trained = True
    assert classified(engine, LabelLikeness(engine)).label_scores.likeness == ()
    assert engine.embedded == []


def test_a_label_is_read_with_its_description():
    assert label_texts(("card_lost", "x"), {"card_lost": "was stolen", "x": ""}) == ["card lost: was stolen", "x"]
