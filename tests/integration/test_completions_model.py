"""Texts continued by the real weights: gaps, echoes, the best of several, figures that add up."""

import math
from pathlib import Path

import pytest
import pytest_asyncio
from fakes import gguf, smollm2

from agent.engine.supervisor import EnginePool
from agent.settings import EngineSettings
from agent.types import FailureKind, Generation, InferenceRequest, Message, RequestKind, Sampling

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]
# The model was not trained on these; what is shown is where they stand in the prompt.
MARKS = {"pre": 5, "suf": 6, "mid": 7}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory):
    plain = smollm2.model_file()
    marks = [(f"tokenizer.ggml.fim_{name}_token_id", gguf.U32, token) for name, token in MARKS.items()]
    path = tmp_path_factory.mktemp("model") / "gaps.gguf"
    path.write_bytes(gguf.with_metadata(Path(plain.path).read_bytes(), marks))
    files = {"smollm2": plain, "gaps": smollm2.model_file("gaps", path=str(path), sha256="e" * 64)}
    pool = EnginePool(EngineSettings(context_tokens=512, parallel=3, threads=1), files.__getitem__)
    yield pool
    await pool.stop(0)


async def complete(engine, prompt, *, model="smollm2", suffix="", echo=False, **sampling):
    asked = InferenceRequest(
        id="r",
        model=model,
        kind=RequestKind.COMPLETION,
        messages=(Message("user", ""),),
        prompt=prompt,
        suffix=suffix,
        echo=echo,
        sampling=Sampling(**sampling),
        received_at_ms=0,
    )
    *_, last = [event async for event in engine.generate(asked)]
    assert isinstance(last, Generation)
    return last


async def tokens_of(engine, text):
    return [token.id for token in (await complete(engine, text, echo=True, max_tokens=0)).prompt_logprobs]


async def test_a_gap_is_marked_by_the_tokens_of_the_file(engine):
    before, after = "def add(a, b):\n    return", "\n\nprint(add(1, 2))\n"
    told = [await tokens_of(engine, text) for text in (before, after)]
    by_hand = (MARKS["pre"], *told[0], MARKS["suf"], *told[1], MARKS["mid"])
    filled = await complete(engine, before, model="gaps", suffix=after, max_tokens=8)
    assert filled.prompt_tokens == len(by_hand)
    assert filled.text == (await complete(engine, by_hand, model="gaps", max_tokens=8)).text
    at_the_start = await complete(engine, "", model="gaps", suffix=after, max_tokens=1)
    assert (at_the_start.failure, at_the_start.prompt_tokens) == (None, len(told[1]) + 3)


@pytest.mark.parametrize(
    ("given", "kind", "param"),
    [
        ({"prompt": "a", "suffix": "b"}, FailureKind.REJECTED, "suffix"),
        ({"prompt": "a " * 600}, FailureKind.CONTEXT_OVERFLOW, "prompt"),
        ({"prompt": "a", "suffix": "b " * 600, "model": "gaps"}, FailureKind.CONTEXT_OVERFLOW, "prompt"),
        ({"prompt": "a", "suffix": "b" * 100_000, "model": "gaps"}, FailureKind.CONTEXT_OVERFLOW, "prompt"),
        ({"prompt": (49152,)}, FailureKind.REJECTED, "prompt"),
        ({"prompt": (49152,), "echo": True, "max_tokens": 0}, FailureKind.REJECTED, "prompt"),
        ({"prompt": "a " * 600, "echo": True}, FailureKind.CONTEXT_OVERFLOW, "prompt"),
    ],
)
async def test_what_cannot_be_continued_names_its_parameter(engine, given, kind, param):
    failure = (await complete(engine, **given)).failure
    assert (failure.kind, failure.param) == (kind, param)


async def test_the_best_of_several_is_the_likeliest_of_them(engine):
    given = {"prompt": "The animal is a", "temperature": 1.5, "seed": 3, "max_tokens": 6}
    every = await complete(engine, n=4, **given)
    best = await complete(engine, best_of=4, **given)
    assert best.others == ()
    assert best.output_tokens == every.output_tokens
    means = [
        math.fsum(token.logprob for token in answer.tokens) / len(answer.tokens) for answer in (every, *every.others)
    ]
    mean = math.fsum(token.logprob for token in best.tokens) / len(best.tokens)
    assert mean >= max(means) - 0.3  # the batches of the two runs may differ in shape, and a little in their figures
