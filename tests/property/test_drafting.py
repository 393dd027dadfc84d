"""Whatever is guessed, the answer is the same; and no more is guessed than pays."""

import random

import pytest
from fakes.answered import answered
from fakes.fake_drafting import FakeDrafting
from fakes.fake_runtime import FakeRuntime, expected_answer
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine import frames
from agent.engine.drafting import Drafting, draft_lengths
from agent.engine.prompt_lookup import Hits, PromptLookup
from agent.engine.sampling import Sampler
from agent.engine.scheduler import Scheduler
from agent.engine.sequence import Sequence
from agent.engine.step_costs import WORTHWHILE, StepCosts
from agent.types import Message, Sampling


def run(asks, drafting=None, **shape):
    """Return text, tokens and end of every request; and the number of decodes."""
    runtime = FakeRuntime(slots=len(asks), **shape)
    told, _ = answered(Scheduler(runtime, waiting_line=0, drafting=drafting), asks)
    assert not any(runtime.content)
    return told, runtime.decodes


SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 1.0, 2.0]),
    seed=st.integers(0, 9),
    max_tokens=st.none() | st.integers(1, 30),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    top_logprobs=st.sampled_from([0, 2]),
    stop=st.sampled_from([(), ("b",), ("ab", "c d")]),
)


@given(
    asks=st.lists(st.tuples(st.text("xyz", min_size=1, max_size=40), SAMPLINGS), min_size=1, max_size=3),
    source=st.randoms(use_true_random=False),
    rightness=st.floats(0, 1),
    batch=st.integers(4, 40),
)
@settings(max_examples=150, deadline=None)
def test_any_guess_leaves_text_figures_and_end_as_they_were(asks, source, rightness, batch):
    plain, _ = run(asks, batch_tokens=batch)
    guessed, _ = run(asks, FakeDrafting(source, rightness), batch_tokens=batch)
    for number, (text, tokens, ended) in plain.items():
        assert guessed[number][:2] == [text, tokens]
        for field in ("finish_reason", "output_tokens", "prompt_tokens", "failure"):
            assert getattr(guessed[number][2], field) == getattr(ended, field)


def test_right_guesses_save_steps_and_are_counted():
    asks = [("y", Sampling(max_tokens=30))]
    plain, decodes = run(asks, batch_tokens=32)
    guessed, fewer = run(asks, FakeDrafting(random.Random(1), 1.0), batch_tokens=32)
    assert fewer < decodes / 2
    ended = guessed[0][2]
    assert ended.output_tokens == plain[0][2].output_tokens
    assert ended.accepted_tokens > 0
    assert ended.rejected_tokens == 0


def test_wrong_guesses_are_counted_as_rejected():
    guessed, _ = run([("y", Sampling(max_tokens=10))], FakeDrafting(random.Random(1), 0.0), batch_tokens=32)
    assert guessed[0][2].rejected_tokens > guessed[0][2].accepted_tokens


CHANCES = st.lists(st.lists(st.floats(0, 1), max_size=24), min_size=1, max_size=16)


def costs_of(first, slope, sizes=range(1, 20)):
    costs = StepCosts()
    for _ in range(20):
        for tokens in sizes:
            costs.observe(tokens, first + slope * (tokens - 1))
    return costs


@given(
    chances=CHANCES,
    room=st.integers(0, 24),
    steps=st.lists(st.tuples(st.integers(1, 64), st.floats(0, 10)), max_size=50),
)
def test_it_never_guesses_beyond_the_room_or_without_a_gain(chances, room, steps):
    costs = StepCosts()
    for tokens, seconds in steps:
        costs.observe(tokens, seconds)
        assert costs.slope > 0
        assert costs.seconds(tokens) > 0
    lengths = draft_lengths(chances, costs, room)
    assert sum(lengths) <= room
    assert all(0 <= length <= len(given_) for length, given_ in zip(lengths, chances, strict=True))
    if any(lengths):
        gained = float(len(chances))
        for length, given_ in zip(lengths, chances, strict=True):
            reach = 1.0
            for chance in given_[:length]:
                reach *= chance
                gained += reach
        count = len(chances)
        rate = gained / (costs.seconds(count) + sum(lengths) * costs.slope)
        assert rate >= 0.999 * WORTHWHILE * count / costs.seconds(count)


@pytest.mark.parametrize(
    ("slope", "chance", "guesses"), [(0.2, 0.9, True), (0.5, 0.95, True), (0.5, 0.5, False), (1.0, 0.99, False)]
)
def test_it_guesses_as_far_as_the_step_times_make_it_pay(slope, chance, guesses):
    costs = costs_of(0.01, 0.01 * slope)
    assert costs.slope == pytest.approx(0.01 * slope, rel=0.1)
    assert bool(sum(draft_lengths([[chance] * 24], costs, 24))) is guesses


def test_with_nobody_who_decodes_nothing_is_guessed_whatever_a_token_costs():
    drafting = Drafting()
    drafting.costs = costs_of(1.0, 2.0)  # each further token costs more than the first: none would cost nothing
    assert drafting.costs.seconds(0) == 0
    assert drafting.drafts([], 24) == []


def test_a_full_batch_leaves_no_gain():
    costs = costs_of(0.01, 0.005)
    assert sum(draft_lengths([[0.8] * 24], costs, 24)) > 0
    assert sum(draft_lengths([[0.8] * 24] * 16, costs, 24)) == 0


def test_what_did_not_pay_is_tried_again_later():
    costs = costs_of(0.01, 0.01)
    assert draft_lengths([[0.95] * 24], costs, 24) == [0]
    for _ in range(300):
        costs.observe(1, 0.01)
    assert draft_lengths([[0.95] * 24], costs, 24) != [0]


@given(prompt=st.lists(st.integers(0, 5), min_size=1, max_size=60), answer=st.lists(st.integers(0, 5), max_size=60))
def test_a_guess_is_text_that_was_there_and_has_the_length_asked_for(prompt, answer):
    lookup = PromptLookup(prompt, Hits())
    for end in range(len(answer) + 1):
        lookup.follow(answer[:end])
        chances = lookup.chances(8)
        draft = lookup.draft(len(chances))
        assert len(draft) == len(chances)
        assert set(draft) <= {*prompt, *answer[:end]}
        assert all(0 <= chance <= 1 for chance in chances)


def test_a_copied_text_is_guessed_to_its_end_also_past_a_changed_word():
    text = list(range(100, 140))
    lookup = PromptLookup([1, 2, *text, 3], Hits())
    copy = [*text[:10], 7, *text[11:]]
    right = 0
    for end in range(len(copy)):
        lookup.follow(copy[:end])
        right += lookup.draft(1) == copy[end : end + 1]
    assert right >= len(copy) - 3


def test_what_the_caller_predicts_is_guessed_from_the_first_token():
    lookup = PromptLookup([1, 2, 3], Hits(), predicted=[5, 6, 7])
    assert lookup.draft(3) == [5, 6, 7]


def test_a_predicted_answer_takes_fewer_decodes_and_is_the_same():
    prediction, _ = expected_answer(b"xy")
    decodes = {}
    for given_ in ("", prediction):
        runtime = FakeRuntime(batch_tokens=32)
        scheduler = Scheduler(runtime, waiting_line=0, drafting=Drafting())
        ask = frames.Generate(id=1, messages=(Message("user", "xy"),), sampling=Sampling(), prediction=given_)
        scheduler.submit(ask)
        text = ""
        while not scheduler.idle:
            step = scheduler.step()
            text += "".join(event.text for event in (*step.pieces, *step.ended))
        assert text == prediction
        decodes[given_] = runtime.decodes
    assert len(prediction) > 4
    assert decodes[prediction] < decodes[""]


def test_no_guess_follows_tokens_that_do_not_fit():
    sequence = Sequence(1, [1, 2, 3], Sampling(), Sampler(Sampling()), 20, None)
    assert sequence.next_chunk(2, [7, 8]) == (-1, 0, [1, 2], False, 0)
    assert sequence.next_chunk(3, [7, 8]) == (-1, 0, [1, 2, 3, 7, 8], True, 2)


def test_hits_teach_the_chance_of_a_match():
    hits = Hits()
    before = hits.chance(3)
    for _ in range(200):
        hits.record(3, hit=False)
    assert hits.chance(3) < 0.1 < before


def test_a_request_that_ended_is_forgotten():
    drafting = Drafting()
    run([("xyxyxyxy", Sampling(max_tokens=20))], drafting, batch_tokens=32)
    assert not drafting._lookups
