"""Answers of a model's source that go with the model to where its source is not."""

import hashlib

import msgspec
import pytest

from agent.evaluation.measure_worker import Text
from agent.evaluation.quality import GOLDEN_WINDOWS, Plan, against_golden
from agent.evaluation.steps import Steps
from agent.evaluation.window import WINDOW_TOKENS, Window
from agent.models.quality import Estimate, TextFigures
from agent.settings import EngineSettings
from agent.types import ModelFile

DIGEST = hashlib.sha256(b"some text").hexdigest()
TEXT = Text("shipped text", "some text")
FIGURES = TextFigures(name="shipped text", tokens=8, perplexity=Estimate(9, 8, 10), bits_per_byte=1.0)
SOURCE = (5, 6, 7, 8)


def file(name):
    return ModelFile(name=name, path="/none", sha256=name[0] * 64, context_tokens=512)


def measured(likeliest, *, expected=(), reference=None, golden=None):
    """What comes of windows in which the model put ``likeliest`` first, and its reference ``expected``."""
    steps = Steps()
    for number in range(GOLDEN_WINDOWS + 1):
        window = Window(
            begin=number * WINDOW_TOKENS,
            surprise=(1.0,) * 4,
            reference_surprise=(),
            divergence=(),
            agreement=(),
            likeliest=likeliest,
            expected=expected,
            bytes=4,
        )
        steps.keep(f"window {DIGEST[:16]} {window.begin}", window)
    plan = Plan(
        model=file("made"),
        reference=reference,
        texts=(TEXT,),
        engine=EngineSettings(),
        longest_context=512,
        golden=golden,
    )
    return against_golden(plan, steps, (FIGURES,))


@pytest.fixture
def golden():
    kept, texts, name = measured(SOURCE, expected=SOURCE, reference=file("source"))
    assert (kept.likeliest, kept.reference, name) == (SOURCE * GOLDEN_WINDOWS, "source", "source")
    assert texts == (FIGURES,)  # the comparison itself stands there already
    return kept


def test_where_the_source_is_not_its_answers_take_its_place(golden):
    kept, (figures,), name = measured((5, 6, 7, 9), golden=golden)
    assert kept == golden
    assert name == "source (its kept answers)"
    assert figures.agreement.value == 0.75
    assert figures.agreement.low < 0.75 < figures.agreement.high


def test_a_processor_that_computes_it_wrongly_is_seen(golden):
    _, (figures,), _ = measured((1, 1, 1, 1), golden=golden)
    assert figures.agreement.value == 0


def test_answers_to_another_text_say_nothing(golden):
    for other in (
        msgspec.structs.replace(golden, text_digest="0" * 64),
        msgspec.structs.replace(golden, likeliest=golden.likeliest[1:]),
        None,
    ):
        assert measured(SOURCE, golden=other) == (other, (FIGURES,), None)


def test_another_vocabulary_leaves_nothing_to_keep():
    assert measured(SOURCE, reference=file("source")) == (None, (FIGURES,), None)
