"""Reading a text with real weights, in the child that does it."""

import random
from pathlib import Path

import pytest
from fakes.smollm2 import model_file

from agent.errors import EngineFailed
from agent.evaluation.measure_worker import Text
from agent.evaluation.quality import Plan, read_texts, shipped_text
from agent.settings import EngineSettings

pytestmark = pytest.mark.model
TEXT = Text("note", shipped_text().text[:900])


def plan(model, reference):
    return Plan(model=model, reference=reference, texts=(TEXT,), engine=EngineSettings(threads=1), longest_context=512)


def damaged(path):
    """Flip bytes of weights: the header stays as it is."""
    data = bytearray(Path(model_file().path).read_bytes())
    drawn = random.Random(1)
    for _ in range(4000):
        data[drawn.randrange(len(data) // 2, len(data))] ^= 0xFF
    path.write_bytes(data)
    return model_file("damaged", path=str(path), sha256="0" * 64)


def test_a_damaged_file_is_seen_beside_the_whole_one(tmp_path):
    (figures,) = read_texts(plan(damaged(tmp_path / "damaged.gguf"), model_file("whole")), lambda told: None)
    assert figures.fault or figures.agreement.value < 0.5
    (whole,) = read_texts(plan(model_file("whole"), model_file("same")), lambda told: None)
    assert whole.agreement.value == 1
    assert whole.divergence.value == 0
    assert 5 < whole.perplexity.value < 60


def test_a_file_that_cannot_be_loaded_says_so(tmp_path):
    path = tmp_path / "not.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(EngineFailed, match="cannot be loaded"):
        read_texts(plan(model_file("not", path=str(path)), None), lambda told: None)
