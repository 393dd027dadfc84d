"""Several decodes before anybody looks at their rows: the answers are the same, in fewer turns."""

from fakes.answered import answered
from fakes.fake_runtime import END, FakeRuntime
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine import frames
from agent.engine.run_ahead import MOST_ROWS, RUN_S, RunAhead
from agent.engine.runtime import Chunk
from agent.engine.sampling import Sampler
from agent.engine.scheduler import Scheduler
from agent.engine.sequence import Sequence
from agent.types import Message, Sampling

SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.0, 1.0]),
    seed=st.integers(0, 9),
    max_tokens=st.none() | st.integers(1, 30),
    min_tokens=st.sampled_from([0, 0, 12]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3]),
    top_logprobs=st.sampled_from([0, 2]),
    stop=st.sampled_from([(), ("b",), ("ab", "c d")]),
)


def run(asks, interrupted, **shape):
    """Return text, tokens and end of every request; and the number of turns and of decodes."""
    runtime = FakeRuntime(slots=max(1, len(asks) - 1), **shape)
    told, turns = answered(Scheduler(runtime, waiting_line=1, interrupted=interrupted), asks)
    assert not any(runtime.content)
    return told, turns, runtime.decodes


@given(
    asks=st.lists(st.tuples(st.text("xyz", min_size=1, max_size=30), SAMPLINGS), min_size=1, max_size=4),
    source=st.randoms(use_true_random=False),
    interruptions=st.sampled_from([0.0, 0.3]),
    batch=st.integers(4, 40),
)
@settings(max_examples=150, deadline=None)
def test_text_figures_and_end_are_as_without(asks, source, interruptions, batch):
    plain, _, decodes = run(asks, lambda: True, batch_tokens=batch)
    ahead, _, more = run(asks, lambda: source.random() < interruptions, batch_tokens=batch)
    assert ahead == plain
    assert more >= decodes


def test_a_greedy_answer_takes_few_turns_and_not_one_decode_more():
    asks = [("y", Sampling(max_tokens=30))]
    plain, turns, decodes = run(asks, lambda: True)
    ahead, fewer, same = run(asks, lambda: False)
    assert ahead == plain
    assert len(ahead[0][1]) > 8
    assert fewer <= 2 + turns / 4
    assert same == decodes
    assert ahead[0][2].accepted_tokens == ahead[0][2].rejected_tokens == 0, "they are no drafted tokens"


def test_tokens_drawn_by_chance_are_not_guessed():
    asks = [("y", Sampling(max_tokens=30, temperature=1.0, seed=1))]
    assert run(asks, lambda: True)[1:] == run(asks, lambda: False)[1:]


def test_who_comes_in_the_middle_waits_for_one_decode():
    runtime = FakeRuntime(slots=2)
    waiting = []
    scheduler = Scheduler(runtime, waiting_line=0, interrupted=lambda: bool(waiting))
    scheduler.submit(frames.Generate(id=1, messages=(Message("user", "y"),), sampling=Sampling(min_tokens=30)))
    scheduler.step()  # the prompt
    decode_one_each = runtime.decode_one_each

    def arrive(slots, tokens):
        waiting.append(2)
        return decode_one_each(slots, tokens)

    runtime.decode_one_each = arrive
    before = runtime.decodes
    scheduler.step()
    assert runtime.decodes == before + 2


@given(
    requests=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 30)), min_size=1, max_size=20),
    step_s=st.floats(0, 1),
)
def test_a_run_keeps_to_its_time_its_rows_and_the_shortest_answer(requests, step_s):
    chunks, sequences = [], []
    for slot, (limit, generated) in enumerate(requests):
        sequence = Sequence(slot, [1], Sampling(), Sampler(Sampling(temperature=0)), limit, None)
        sequence.begun, sequence.answer = True, [2] * min(generated, limit - 1)
        sequences.append(sequence)
        chunks.append(Chunk(slot, 1, [2], True))
    count = RunAhead(FakeRuntime(), interrupted=lambda: False).count(chunks, sequences, step_s)
    assert count * len(requests) <= MOST_ROWS
    assert count == 0 or (1 + count) * step_s <= RUN_S * 1.001
    assert all(one.generated + 1 + count <= one.limit for one in sequences)


def test_an_end_is_seen_before_it_is_decoded():
    runtime = FakeRuntime(slots=1)
    decoded = []
    decode = runtime.decode

    def noting(chunks):
        decoded.extend(token for chunk in chunks for token in chunk.tokens)
        return decode(chunks)

    runtime.decode = noting
    scheduler = Scheduler(runtime, waiting_line=0)
    scheduler.submit(frames.Generate(id=1, messages=(Message("user", "y"),), sampling=Sampling()))
    while not scheduler.idle:
        scheduler.step()
    assert len(decoded) > 4
    assert END not in decoded
