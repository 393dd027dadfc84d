"""Label scores on the real weights do not depend on what else runs, ran before, or is asked with them."""

import asyncio
import itertools

import msgspec
import numpy as np
import pytest
import pytest_asyncio
from fakes import smollm2

from agent.classification import Classifier
from agent.engine import frames
from agent.engine.label_scores import LabelScorer
from agent.engine.runtime import Chunk
from agent.engine.scheduler import Scheduler
from agent.engine.supervisor import EnginePool
from agent.settings import EngineSettings
from agent.types import InferenceRequest, Message, RequestKind, Sampling

pytestmark = pytest.mark.model
WITHIN = 0.01  # nats
LABELS = ("card arrival", "card not working", "card", "exchange rate", "lost card", "request refund", "top up failed")
SYSTEM = Message("system", "You sort messages that customers send to a bank. Reply with the topic, nothing else.")
counter = itertools.count(1)


def load(threads=1):
    from agent.engine.llama_cpp_runtime import LlamaCppRuntime

    return LlamaCppRuntime(
        frames.Load(
            model=smollm2.model_file(), context_tokens=512, parallel=15, waiting_line=5, threads=threads, confine=False
        )
    )


@pytest.fixture(scope="module")
def loaded():
    runtime = load()
    yield runtime
    runtime.close()


@pytest.fixture
def runtime(loaded):
    yield loaded
    for slot in range(loaded.slots):
        loaded.clear(slot)


def score(text="My new card has not come yet.", labels=LABELS, **changes):
    messages = (SYSTEM, Message("user", text))
    return frames.Score(id=next(counter), messages=messages, labels=tuple(labels), **changes)


def run(runtime, *asks, scheduler=None, scorer=None):
    scorer = scorer or LabelScorer(runtime, waiting_line=5)
    for ask in asks:
        scorer.submit(ask)
    found = []
    while not scorer.idle:
        if scheduler is not None:
            scheduler.step()
        found += scorer.step()
    assert not any(scored.failure for scored in found)
    return found


def test_alone_among_fifteen_others_cold_and_cached_agree(runtime):
    (alone,) = run(runtime, score())
    assert alone.cached_tokens == 0
    scheduler = Scheduler(runtime, waiting_line=0)
    for number in range(15):
        told = Message("user", f"Write a story about {number} dogs.")
        scheduler.submit(frames.Generate(id=number, messages=(told,), sampling=Sampling(max_tokens=60, seed=number)))
    for _ in range(5):
        scheduler.step()
    (among,) = run(runtime, score(), scheduler=scheduler)
    scorer = LabelScorer(runtime, waiting_line=5)
    other = score("Why does the exchange rate differ from the one I was told yesterday?", ("a", "b", *LABELS))
    _, cached = run(runtime, other, score(), scorer=scorer)
    assert cached.cached_tokens > 10
    for other in (among, cached):
        assert np.abs(np.subtract(alone.logprobs, other.logprobs)).max() <= WITHIN
        assert other.mass == pytest.approx(alone.mass, rel=WITHIN)


def test_neither_order_nor_company_nor_threads_change_a_label(runtime):
    (whole,) = run(runtime, score())
    figures = dict(zip(LABELS, whole.logprobs, strict=True))
    (turned,) = run(runtime, score(labels=reversed(LABELS)))
    assert turned.logprobs == tuple(reversed(whole.logprobs))
    for label in LABELS:
        (single,) = run(runtime, score(labels=(label,)))
        assert single.logprobs[0] == pytest.approx(figures[label], abs=WITHIN)
    two = load(threads=2)
    (threaded,) = run(two, score())
    two.close()
    assert np.abs(np.subtract(whole.logprobs, threaded.logprobs)).max() <= WITHIN


def test_neither_does_the_size_of_a_batch(runtime, monkeypatch):
    """What ends a batch and what is filled up with it must not show, down to one step of it."""
    from agent.engine.llama_cpp_scoring import LlamaCppScoring

    text = "I ordered a card, and then another one, and neither has come yet. " * 8
    (whole,) = run(runtime, score(text))
    for size in (48, 8, 13):
        monkeypatch.setattr(LlamaCppScoring, "batch_tokens", size)
        runtime.scoring(1).keep(0)
        (cut,) = run(runtime, score(text))
        assert np.abs(np.subtract(whole.logprobs, cut.logprobs)).max() <= WITHIN


def test_scores_are_those_of_the_generating_context(runtime):
    """Two contexts and batch shapes: the same model, within what a quantized file drifts."""
    (whole,) = run(runtime, score())
    prompt = runtime.prompt_tokens((SYSTEM, Message("user", "My new card has not come yet.")))
    for label, figure in zip(LABELS, whole.logprobs, strict=True):
        total, tokens = 0.0, runtime.label_tokens(label)
        (row,) = runtime.decode([Chunk(0, 0, prompt, wants_row=True)])
        for at, token in enumerate(tokens):
            exact = row.astype(np.float64)
            total += exact[token] - np.logaddexp.reduce(exact)
            (row,) = runtime.decode([Chunk(0, len(prompt) + at, [token], wants_row=True)])
        runtime.clear(0)
        assert figure == pytest.approx(total, abs=1.0)


def test_the_best_alone_is_the_best_of_all(runtime):
    for text in ("My new card has not come yet.", "Give me my money back!", "What is the rate for dollars?"):
        (whole,) = run(runtime, score(text))
        (only,) = run(runtime, score(text, best_only=True))
        assert only.best == whole.best


def test_a_mass_is_a_probability(runtime):
    (whole,) = run(runtime, score())
    assert 0 < whole.mass < 1
    (echoed,) = run(runtime, frames.Score(id=next(counter), prompt="The capital of France is Paris", echo=True))
    assert echoed.prompt[-1].text_bytes == b" Paris"
    assert echoed.prompt[-1].logprob > -3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine():
    settings = EngineSettings(context_tokens=512, parallel=4, threads=1)
    pool = EnginePool(settings, {"smollm2": smollm2.model_file()}.__getitem__)
    yield pool
    await pool.stop(0)


def request(kind, messages=(), **fields):
    given = {"id": "r", "model": "smollm2", "received_at_ms": 0, "messages": tuple(messages), "kind": kind}
    return InferenceRequest(**(given | fields))


async def generated(engine, asked):
    *_, last = [event async for event in engine.generate(asked)]
    assert last.failure is None
    return last


@pytest.mark.asyncio(loop_scope="module")
async def test_a_choice_is_the_same_alone_and_in_a_crowd(engine):
    classifier = Classifier(engine)
    text = Message("user", "I want my money back for the shoes that I bought.")
    asked = request(RequestKind.CLASSIFY, (SYSTEM, text), labels=LABELS)
    alone = await classifier.run(asked)
    crowd = [request(RequestKind.CHAT, (text,), sampling=Sampling(max_tokens=30, seed=n)) for n in range(4)]
    turned = msgspec.structs.replace(asked, labels=LABELS[::-1])
    among, *others = await asyncio.gather(
        Classifier(engine).run(turned),
        *(generated(engine, one) for one in crowd),
    )
    assert alone.failure is None
    assert alone.text == among.text in LABELS
    assert all(other.output_tokens for other in others)
    ours, theirs = alone.label_scores, among.label_scores
    assert np.abs(np.subtract(ours.logprobs, theirs.logprobs[::-1])).max() <= WITHIN
    assert np.abs(np.subtract(ours.content_free, [row[::-1] for row in theirs.content_free])).max() <= WITHIN


@pytest.mark.asyncio(loop_scope="module")
async def test_the_log_likelihood_of_an_ending_is_that_of_its_tokens(engine):
    """As an evaluation harness asks: context and ending as one echoed prompt, once in text and once in tokens."""
    sampling = Sampling(max_tokens=0, logprobs=True, top_logprobs=1)
    likely, unlikely = [
        await generated(engine, request(RequestKind.COMPLETION, prompt=text, echo=True, sampling=sampling))
        for text in ("The capital of France is Paris", "The capital of France is Berlin")
    ]
    assert likely.prompt_logprobs[-1].logprob > unlikely.prompt_logprobs[-1].logprob + 1
    assert likely.prompt_logprobs[-1].top[0].text_bytes == b" Paris"
    ids = tuple(token.id for token in likely.prompt_logprobs)
    again = await generated(engine, request(RequestKind.COMPLETION, prompt=ids, echo=True, sampling=sampling))
    assert again.prompt_logprobs == likely.prompt_logprobs
    assert (again.text, again.finish_reason, again.prompt_tokens) == ("", "length", len(ids))


@pytest.mark.asyncio(loop_scope="module")
async def test_a_text_is_continued(engine):
    asked = request(RequestKind.COMPLETION, prompt="One, two, three, four,", sampling=Sampling(max_tokens=3))
    assert (await generated(engine, asked)).text.strip().startswith("five")
