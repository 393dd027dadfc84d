"""Sampling through the real weights: what a parameter promises shows in the text."""

import asyncio

import pytest
import pytest_asyncio
from fakes import smollm2

from agent.engine.supervisor import EnginePool
from agent.settings import EngineSettings
from agent.types import Delta, FailureKind, Generation, InferenceRequest, Message, Sampling

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]
CAPITAL = "What is the capital of France?"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine():
    settings = EngineSettings(context_tokens=512, parallel=3, threads=1)
    pool = EnginePool(settings, {"smollm2": smollm2.model_file()}.__getitem__)
    yield pool
    await pool.stop(0)


async def ask(engine, text=CAPITAL, **sampling):
    asked = InferenceRequest(
        id="r", model="smollm2", messages=(Message("user", text),), sampling=Sampling(**sampling), received_at_ms=0
    )
    *deltas, last = [event async for event in engine.generate(asked)]
    assert isinstance(last, Generation)
    assert all(isinstance(delta, Delta) for delta in deltas)
    return last


async def test_top_k_of_one_is_greedy_at_any_temperature(engine):
    assert (await ask(engine, temperature=2.0, top_k=1)).text == (await ask(engine)).text


async def test_a_banned_token_never_comes(engine):
    plain = await ask(engine)
    paris = next(token.id for token in plain.tokens if b"Paris" in token.text_bytes)
    banned = await ask(engine, logit_bias=((paris, -100.0),), max_tokens=20)
    assert paris not in {token.id for token in banned.tokens}


async def test_an_answer_that_must_be_longer_goes_on_past_its_end(engine):
    plain = await ask(engine, max_tokens=60)
    assert plain.finish_reason == "stop"
    length = len(plain.tokens)
    longer = await ask(engine, max_tokens=length + 9, min_tokens=length + 5)
    assert [token.id for token in longer.tokens[:length]] == [token.id for token in plain.tokens]
    assert len(longer.tokens) >= length + 5
    stopped = await ask(engine, max_tokens=60, min_tokens=60, stop=("Paris",))
    assert (stopped.finish_reason, stopped.text) == ("stop", plain.text.partition("Paris")[0])


async def test_a_token_that_does_not_exist_is_refused_by_parameter(engine):
    answer = await ask(engine, logit_bias=((900_000_000, 1.0),))
    assert (answer.failure.kind, answer.failure.param) == (FailureKind.REJECTED, "logit_bias")


async def test_a_repetition_penalty_ends_a_loop(engine):
    text = "Repeat the word yes forever: yes yes yes yes yes yes"
    plain = await ask(engine, text, max_tokens=40)
    penalised = await ask(engine, text, max_tokens=40, repetition_penalty=1.6)
    share = [len({t.id for t in answer.tokens}) / len(answer.tokens) for answer in (plain, penalised)]
    assert share[1] > share[0]


async def test_log_probabilities_are_those_without_penalties(engine):
    plain = (await ask(engine, max_tokens=1)).tokens[0]
    pushed = (await ask(engine, max_tokens=1, logit_bias=((plain.id, 50.0),), presence_penalty=2.0)).tokens[0]
    assert pushed.id == plain.id
    assert pushed.logprob == pytest.approx(plain.logprob, abs=1e-3)


async def test_three_answers_to_one_prompt_repeat_with_the_seed(engine):
    def texts(answer):
        return [answer.text, *(other.text for other in answer.others)]

    given = {"temperature": 1.2, "seed": 5, "n": 3, "max_tokens": 12}
    several = await ask(engine, "Name an animal.", **given)
    assert len(set(texts(several))) > 1
    assert several.output_tokens == len(several.tokens) + sum(len(other.tokens) for other in several.others)
    alone = [await ask(engine, "Name an animal.", **given | {"seed": 5 + i, "n": 1}) for i in range(3)]
    # The first tokens agree; later ones may differ where the batch was shaped differently.
    assert [text.split()[:1] for text in texts(several)] == [answer.text.split()[:1] for answer in alone]


async def test_the_engine_is_idle_after_a_caller_of_several_answers_left(engine):
    asked = InferenceRequest(
        id="r", model="smollm2", messages=(Message("user", "Write a story."),), sampling=Sampling(n=3), received_at_ms=0
    )
    events = engine.generate(asked)
    await anext(events)
    await events.aclose()
    async with asyncio.timeout(20):
        while (status := engine.status()["smollm2"]).active or status.waiting:
            await asyncio.sleep(0.01)
    assert (await ask(engine)).failure is None
