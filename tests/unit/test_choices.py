"""Several answers to one prompt: the first leads, all are told apart, one failure ends all."""

import asyncio

import pytest

from agent.engine.choices import generate_choices
from agent.types import Delta, Failure, FailureKind, Generation, InferenceRequest, Message, Sampling, Token


def request(n=3, seed=7, best_of=1):
    sampling = Sampling(n=n, seed=seed, best_of=best_of)
    return InferenceRequest(id="r", model="m", messages=(Message("user", "hi"),), sampling=sampling, received_at_ms=0)


class Engine:
    def __init__(self, *, fails=(), raises=False, logprobs=None):
        self.fails, self.raises = fails, raises
        self.logprobs = logprobs or {}  # of the tokens, by seed
        self.begun, self.closed = [], []

    async def generate(self, asked):
        assert asked.sampling.n == 1
        seed = asked.sampling.seed
        self.begun.append(seed)
        try:
            await asyncio.sleep(0)
            if self.raises:
                raise RuntimeError("a bug")
            if seed in self.fails:
                yield Generation(failure=Failure(FailureKind.BUSY, "full"))
                return
            yield Delta(f"{seed} ")
            await asyncio.sleep(0)
            yield Delta("end")
            tokens = tuple(Token(n, b"", figure, -9.0, 0.0) for n, figure in enumerate(self.logprobs.get(seed, ())))
            yield Generation(text=f"{seed} end", finish_reason="stop", tokens=tokens, output_tokens=2, prompt_tokens=5)
        finally:
            self.closed.append(seed)


async def collect(engine, asked):
    return [event async for event in generate_choices(asked, engine.generate)]


async def test_each_answer_has_its_seed_its_index_and_its_text():
    *deltas, last = await collect(Engine(), request())
    texts = ["".join(delta.text for delta in deltas if delta.choice == index) for index in range(3)]
    assert texts == ["7 end", "8 end", "9 end"]
    assert [last.text, *(other.text for other in last.others)] == texts
    assert (last.prompt_tokens, last.output_tokens) == (5, 6)
    assert [other.finish_reason for other in last.others] == ["stop", "stop"]


async def test_the_best_by_mean_log_probability_are_told_and_all_are_counted():
    engine = Engine(logprobs={7: (-1.0, -1.0), 8: (-0.2, -0.4, -0.3), 9: (), 10: (-0.5,)})
    *_, last = await collect(engine, request(n=2, best_of=4))
    assert [last.text, *(other.text for other in last.others)] == ["8 end", "10 end"]
    assert last.output_tokens == 8


async def test_the_others_wait_for_the_first_token_of_the_first():
    engine = Engine()
    events = generate_choices(request(), engine.generate)
    assert (await anext(events)).text == "7 "
    assert engine.begun[0] == 7
    await events.aclose()
    assert sorted(engine.closed) == sorted(engine.begun)


async def test_a_failure_of_one_is_the_failure_of_the_request():
    engine = Engine(fails=(8,))
    *_, last = await collect(engine, request())
    assert last.failure.kind is FailureKind.BUSY
    assert sorted(engine.closed) == sorted(engine.begun)


async def test_when_the_first_fails_the_others_never_begin():
    engine = Engine(fails=(7,))
    (last,) = await collect(engine, request())
    assert last.failure.kind is FailureKind.BUSY
    assert engine.begun == [7]


async def test_a_fault_is_raised_and_leaves_nothing_running():
    engine = Engine(raises=True)
    with pytest.raises(RuntimeError):
        await collect(engine, request())
    assert engine.closed == engine.begun == [7]


async def test_without_a_seed_none_is_made_up():
    engine = Engine()
    await collect(engine, request(n=2, seed=None))
    assert engine.begun == [None, None]
