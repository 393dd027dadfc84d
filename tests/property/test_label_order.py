"""Whatever a label is chosen by, the order in which labels are named changes no score."""

import asyncio
import random
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.classification import Classifier
from agent.confidence import labels as label_confidence
from agent.confidence.heads import Feature, Head, Layer
from agent.label_likeness import LabelLikeness
from agent.scores import Scores, Vectors
from agent.task_book import FEWEST_INPUTS, TaskBook
from agent.task_folder import TaskFolder
from agent.tasks import TaskSpec
from agent.types import InferenceRequest, RequestKind

LABELS = ("refund", "card lost", "card", "hours", "an opening hour of the branch")


class Engine:
    """Scores every label by its text alone, and every text by its length."""

    async def score(self, request, labels, *, messages=None, hidden=False):
        said = (messages or request.messages)[-1].content
        logprobs = tuple(-random.Random(f"{said} {label}").uniform(1, 20) for label in labels)
        counts = tuple(len(label.split()) for label in labels)
        state = array("f", [random.Random(f"{said} {n}").gauss(0, 1) for n in range(3)]).tobytes() if hidden else b""
        mass = 0.5 if labels else None
        return Scores(
            logprobs=logprobs, token_counts=counts, mass=mass, hidden=state, model="m", model_digest="d"
        )  # fmt: skip

    async def embed(self, model, texts, *, deadline_at_ms=None):
        rows = tuple(tuple(random.Random(f"{text} {n}").gauss(0, 1) for n in range(4)) for text in texts)
        return Vectors(vectors=rows, model=model, model_digest="e")


@pytest.fixture(scope="module", params=["nothing", "mean", *Feature])
def book(request, tmp_path_factory):
    book = TaskBook(TaskFolder(tmp_path_factory.mktemp("tasks")))
    spec = TaskSpec(name="t", labels=dict.fromkeys(LABELS, ""))
    book.folder.put(spec)
    if request.param == "mean":
        for number in range(FEWEST_INPUTS):
            book.observe("t", LABELS, [-float(number % (n + 2)) for n in range(len(LABELS))], "d")
    elif request.param != "nothing":

        def layer(width, seed):
            numbers = [random.Random(f"{seed} {n}").gauss(0, 1) for n in range(width * len(LABELS))]
            return Layer(weights=array("f", numbers).tobytes(), bias=(0.1, 0.2, 0.3, 0.4, 0.5))

        feature = Feature(request.param)
        head = Head(
            task="t", task_digest=spec.digest, labels=spec.names, feature=feature, encoder="e", encoder_digest="e",
            embedding=layer(4, 1) if Feature.EMBEDDING in feature.parts else None, model="m", model_digest="d",
            hidden=layer(3, 3) if Feature.HIDDEN in feature.parts else None,
            scores=layer(len(LABELS), 2) if Feature.SCORES in feature.parts else None,
        )  # fmt: skip
        book.put(heads=[head])
    return book


@given(order=st.permutations(LABELS), text=st.text(min_size=1, max_size=20))
@settings(max_examples=25, deadline=None)
def test_the_order_of_labels_changes_no_score(book, order, text):
    def chosen(labels):
        spec = book.spec("t")
        request = InferenceRequest(
            id="1", kind=RequestKind.CLASSIFY, model="m", messages=spec.messages(text), labels=tuple(labels), task="t",
            received_at_ms=0,
        )  # fmt: skip
        before = book.means("t")
        generation = asyncio.run(Classifier(Engine(), book, LabelLikeness(Engine())).run(request))
        book.put(means=[before] if before else [])
        told = dict(zip(labels, label_confidence.distribution(generation.label_scores), strict=True))
        return generation.text, told, label_confidence.judge(generation).score

    text_of, told, score = chosen(LABELS)
    other_text, other, other_score = chosen(order)
    assert (other_text, other_score) == (text_of, score)
    assert other == told
