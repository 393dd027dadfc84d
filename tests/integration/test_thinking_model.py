"""SmolLM2 made to think by a template that opens its thoughts, the way of the DeepSeek-R1 distills."""

import asyncio
import json
from pathlib import Path

import pytest
import pytest_asyncio
from fakes import smollm2

from agent.confidence.estimators import estimator
from agent.engine.supervisor import EnginePool
from agent.settings import EngineSettings
from agent.structure import FormatKind, OutputFormat
from agent.types import FailureKind, InferenceRequest, Message, Sampling, Thinking

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]
TEMPLATE = smollm2.TEMPLATE.replace("assistant\n' }}", "assistant\n<think>\n' }}") + "{# </think> #}"
CAPITAL = OutputFormat(
    kind=FormatKind.JSON_SCHEMA,
    source='{"type": "object", "properties": {"capital": {"enum": ["Paris", "Rome"]}}, "required": ["capital"]}',
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine():
    settings = EngineSettings(context_tokens=512, parallel=3, threads=1, thinking_budget_tokens=4)
    pool = EnginePool(settings, {"smollm2": smollm2.model_file(chat_template=TEMPLATE)}.__getitem__)
    yield pool
    await pool.stop(0)


async def ask(engine, **asked):
    request = InferenceRequest(
        id="r",
        model="smollm2",
        messages=(Message("user", "What is the capital of France?"),),
        sampling=Sampling(max_tokens=asked.pop("max_tokens", 40)),
        received_at_ms=0,
        **asked,
    )
    *deltas, last = [event async for event in engine.generate(request)]
    assert last.failure is None
    assert "".join(delta.thought for delta in deltas) == last.thoughts
    assert "".join(delta.text for delta in deltas) == last.text
    assert b"".join(token.text_bytes for token in last.tokens).decode() == last.text
    assert "</think>" not in last.thoughts
    return last


async def test_a_budget_ends_the_thoughts_and_the_answer_follows(engine):
    found = await ask(engine)
    assert found.thoughts
    assert 4 < found.thought_tokens < 12
    assert found.output_tokens == found.thought_tokens + len(found.tokens)
    judged = estimator("lowest_tenth")(found)
    assert judged.signals["tokens"] == len(found.tokens), "only the answer is judged"


async def test_without_thoughts_the_answer_follows_at_once(engine):
    found = await ask(engine, thinking=Thinking(enabled=False))
    assert (found.thoughts, found.thought_tokens) == ("", 0)
    assert "Paris" in found.text


async def test_a_schema_holds_after_the_thoughts(engine):
    found = await asyncio.gather(ask(engine, response_format=CAPITAL), ask(engine))
    assert json.loads(found[0].text)["capital"] in {"Paris", "Rome"}
    assert found[0].thoughts
    assert found[1].thoughts


async def test_an_answer_that_never_came_is_not_sure(engine):
    found = await ask(engine, max_tokens=6)
    assert (found.text, found.finish_reason, found.thought_tokens) == ("", "length", 6)
    assert estimator("lowest_tenth")(found).score is None


async def test_labels_are_scored_as_answers_not_as_thoughts(engine):
    request = InferenceRequest(
        id="r", model="smollm2", messages=(Message("user", "What is the capital of France?"),), received_at_ms=0
    )
    scores = await engine.score(request, ["The capital of France is Paris", "<think>"])
    assert scores.failure is None
    assert scores.logprobs[0] > scores.logprobs[1]


async def test_a_model_without_a_template_continues_texts_and_refuses_chats(tmp_path):
    path = tmp_path / "bare.gguf"
    data = Path(smollm2.model_file().path).read_bytes()
    assert data.count(b"tokenizer.chat_template") == 1
    path.write_bytes(data.replace(b"tokenizer.chat_template", b"tokenizer.chat_templatf"))
    pool = EnginePool(
        EngineSettings(context_tokens=256, parallel=1, threads=1),
        {"smollm2": smollm2.model_file(path=str(path), chat_template=None)}.__getitem__,
    )
    try:
        told = []
        for prompt in (None, "The capital of France is"):
            request = InferenceRequest(
                id="r",
                model="smollm2",
                messages=(Message("user", "Hi"),),
                prompt=prompt,
                sampling=Sampling(max_tokens=3),
                received_at_ms=0,
            )
            *_, last = [event async for event in pool.generate(request)]
            told.append(last)
    finally:
        await pool.stop(0)
    chat, completion = told
    assert chat.failure.kind is FailureKind.REJECTED
    assert "no chat template" in chat.failure.message
    assert "Paris" in completion.text
