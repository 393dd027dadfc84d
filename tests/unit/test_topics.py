"""What a taught task says of a text, for rules: only where it can be told."""

import math
from array import array

import pytest
from fakes.storage_values import request

from agent.confidence.familiarity import Familiarity
from agent.confidence.heads import AppliedHead, Feature, Head, Layer
from agent.rule_settings import RuleSettings, TopicSettings
from agent.rules import NO_RULES, Rulebook
from agent.scores import Vectors
from agent.topics import LONG_TEXT, Topics
from agent.types import Failure, FailureKind

RULES = Rulebook([RuleSettings(name="r", topic=TopicSettings(task="about", labels=("medical",)))])
AXES = array("f", [1.0, 0.0, 0.0, 1.0]).tobytes()


class Tasks:
    def __init__(self, **fields):
        layer = Layer(weights=array("f", [4.0, 0.0, 0.0, 4.0]).tobytes(), bias=(0.0, 0.0))
        familiarity = Familiarity(centres=AXES, reach=0.9)
        values = {"feature": Feature.EMBEDDING, "embedding": layer, "familiarity": familiarity, "encoder_digest": "d"}
        self._head = AppliedHead(
            Head(task="about", task_digest="t", labels=("medical", "sports"), **{**values, **fields})
        )

    def head(self, task):
        return self._head if task == "about" else None


class Engine:
    def __init__(self, vector=(1.0, 0.1), **fields):
        self.asked = []
        self._vectors = Vectors(**{"vectors": (vector,), "model_digest": "d", **fields})

    async def embed(self, model, texts, *, deadline_at_ms=None):
        self.asked += texts
        return self._vectors


async def test_the_head_names_a_label_and_whether_it_has_seen_the_like():
    facts = await Topics(Engine(), Tasks()).look(request("my back hurts"), RULES)
    topic = facts.topics["about"]
    assert (topic.label, topic.familiar) == ("medical", True)
    assert topic.probability == pytest.approx(1 / (1 + math.exp(-3.6)))
    facts = await Topics(Engine(vector=(0.7, 0.7)), Tasks()).look(request("x"), RULES)
    assert facts.topics["about"].familiar is False


@pytest.mark.parametrize(
    "engine",
    [
        Engine(failure=Failure(FailureKind.CRASH, "died"), vectors=()),
        Engine(model_digest="other"),
        Engine(vector=(math.nan, 1.0)),
    ],
)
async def test_what_cannot_be_told_is_left_out(engine):
    assert (await Topics(engine, Tasks()).look(request("x"), RULES)).topics == {}


async def test_nothing_is_asked_that_no_rule_needs():
    engine = Engine()
    topics = Topics(engine, Tasks())
    await topics.look(request("x"), NO_RULES)
    long = await topics.look(request("word " * LONG_TEXT), Rulebook([RuleSettings(name="r", keywords=("word",))]))
    assert engine.asked == []
    assert long.texts == {"r"}
