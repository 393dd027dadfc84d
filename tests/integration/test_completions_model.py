"""Texts continued by the real weights: gaps, echoes, the best of several, figures that add up."""

import math
from pathlib import Path

import pytest
import pytest_asyncio
from fakes import gguf, smollm2

from agent.engine.supervisor import EnginePool
from agent.engine.worker_status import ModelTraits
from agent.settings import EngineSettings
from agent.types import FailureKind, Generation, InferenceRequest, Message, RequestKind, Sampling

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]
CAPITAL = "What is the capital of France?"
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


async def test_the_files_say_what_they_are(engine):
    for name in ("smollm2", "gaps"):
        await complete(engine, "a", model=name, max_tokens=1)
    found = {name: status.traits for name, status in engine.status().items()}
    held_as = found["smollm2"].held_as  # depends on the processor
    same = ModelTraits(parameters=134_515_008, quantization="Q4_1", fills_gaps=False, thinks=False, held_as=held_as)
    assert found["smollm2"] == same
    assert found["gaps"].fills_gaps


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


async def test_one_of_several_is_told_and_all_are_counted(engine):
    best = await complete(engine, "The animal is a", temperature=1.5, seed=3, max_tokens=6, best_of=4)
    assert best.others == ()
    assert len(best.tokens) < best.output_tokens <= 24


QUESTION = "Question: Which gas do plants take in from the air to make food?\nAnswer:"
CHOICES = (" Oxygen", " Carbon dioxide", " Nitrogen", " A very rare mixture of noble gases and water")


def figures(generation):
    return [token.logprob for token in generation.prompt_logprobs]


async def test_echoes_that_share_a_beginning_have_the_figures_of_those_that_do_not(engine):
    given = {"echo": True, "max_tokens": 0, "logprobs": True, "top_logprobs": 2}
    cold = []
    for choice in CHOICES:
        await complete(engine, "Something else altogether.", **given)
        cold.append(await complete(engine, QUESTION + choice, **given))
    warm = [await complete(engine, QUESTION + choice, **given) for choice in CHOICES]
    assert [answer.prompt_logprobs for answer in warm] == [answer.prompt_logprobs for answer in cold]
    # Other figures are wanted: nothing that is known can be taken.
    bare = await complete(engine, QUESTION + CHOICES[-1], echo=True, max_tokens=0)
    assert figures(bare) == figures(warm[-1])
    assert not bare.prompt_logprobs[-1].top


async def test_echoed_continuations_have_the_log_likelihood_of_labels(engine):
    asked = InferenceRequest(id="r", model="smollm2", messages=(Message("user", CAPITAL),), received_at_ms=0)
    labels = ("Paris", "London", "The capital of France is Paris.")
    prompt = f"<|im_start|>user\n{CAPITAL}<|im_end|>\n<|im_start|>assistant\n"
    start = len(await tokens_of(engine, prompt))
    scores = await engine.score(asked, labels)
    for label, logprob in zip(labels, scores.logprobs, strict=True):
        echoed = await complete(engine, prompt + label, echo=True, max_tokens=1, logprobs=True)
        assert math.fsum(figures(echoed)[start:]) == pytest.approx(logprob, abs=0.01)


async def test_one_token_after_an_echo_is_the_one_that_the_model_would_write(engine):
    for prompt in (QUESTION, CAPITAL + "\n", "The sky is"):
        echoed = await complete(engine, prompt, echo=True, max_tokens=1, logprobs=True, top_logprobs=3)
        plain = await complete(engine, prompt, max_tokens=1, logprobs=True, top_logprobs=3)
        assert (echoed.text, echoed.finish_reason, echoed.output_tokens) == (plain.text, plain.finish_reason, 1)
        assert echoed.tokens[0].logprob == pytest.approx(plain.tokens[0].logprob, abs=0.2)
        assert echoed.tokens[0].top[0].id == echoed.tokens[0].id
    stopped = await complete(engine, QUESTION, echo=True, max_tokens=1, stop=(echoed.text,))
    assert stopped.failure is None
    longer = await complete(engine, QUESTION, echo=True, max_tokens=3)
    assert longer.output_tokens == 3


@pytest.mark.parametrize("echo", [True, False])
async def test_the_end_of_an_answer_has_a_figure_of_its_own(engine, echo):
    prompt = f"<|im_start|>user\n{CAPITAL}<|im_end|>\n<|im_start|>assistant\nThe capital of France is Paris."
    ended = await complete(engine, prompt, echo=echo, max_tokens=1, logprobs=True, top_logprobs=1)
    assert (ended.text, ended.tokens, ended.finish_reason, ended.output_tokens) == ("", (), "stop", 0)
    assert -1 < ended.end.logprob <= 0
    assert ended.end.top[0].id == ended.end.id
    unasked = await complete(engine, prompt, echo=echo, max_tokens=1)
    assert echo or unasked.end.logprob == pytest.approx(ended.end.logprob, abs=0.2)  # what judges answers reads it
