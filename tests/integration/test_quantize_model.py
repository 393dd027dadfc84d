"""What the recipes cost on real weights: the smaller type is further from its source, and none is damaged."""

import pytest
from fakes.smollm2 import model_file

from agent.evaluation.measure_worker import Text
from agent.evaluation.quality import Plan, read_texts, shipped_text
from agent.models.quantizing import Wish, quantize
from agent.models.store import open_store
from agent.settings import EngineSettings
from agent.types import ModelFile

pytestmark = pytest.mark.model
TEXT = Text("beginning", shipped_text().text[:900])
MOST_DIVERGENCE = {"gguf-q8_0": 0.01, "gguf-q4_k_m": 0.1, "gguf-q4_0": 0.4}  # nats


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The embedded weights as F16: they were 4 bits wide before, which F16 holds exactly but for rounding."""
    store = open_store(tmp_path_factory.mktemp("data"))
    wish = Wish(source=model_file().path, recipe="gguf-f16", name="source", force=True)
    quantize(store, wish, lambda _: None)
    return store


def read(store, name, reference):
    def loadable(one):
        kept = store.resolve(one, below_floor=True)
        return ModelFile(name=one, path=kept.path, sha256=kept.sha256, context_tokens=512)

    plan = Plan(
        model=loadable(name),
        reference=loadable(reference),
        texts=(TEXT,),
        engine=EngineSettings(threads=1),
        longest_context=512,
    )
    (figures,) = read_texts(plan, lambda _: None)
    return figures


def test_each_type_stays_near_its_source_and_a_smaller_one_is_further_away(source):
    seen = {}
    for recipe, most in MOST_DIVERGENCE.items():
        wish = Wish(source="source", recipe=recipe, name=recipe, importance="none", threads=2)
        made = quantize(source, wish, lambda _: None).model
        figures = read(source, made.name, "source")
        assert not figures.fault
        assert figures.divergence.value < most, (recipe, figures)
        assert figures.agreement.value > 0.6, (recipe, figures)
        seen[recipe] = (made.bytes, figures.divergence.value)
    assert sorted(seen.values(), reverse=True) == sorted(seen.values(), key=lambda pair: pair[1])
