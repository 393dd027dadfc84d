"""How many tokens a draft model guesses, and when it rests. Time is ours."""

import pytest

from agent.engine.model_guesses import MOST_GUESSES, PAUSES_S, TRIAL_STEPS, ModelGuesses
from agent.engine.sampling import Sampler
from agent.engine.sequence import Sequence
from agent.engine.step_costs import StepCosts
from agent.types import Sampling

STEP_S = 0.010  # of a step of the large model with one token


class Machine:
    """A drafter, and the clock that its work moves on."""

    def __init__(self, guess_s, read_s=0.0):
        self.now, self.guess_s, self.read_s = 0.0, guess_s, read_s
        self.held = {}

    def unread(self, texts):
        return sum(len(tokens) - self.held.get(slot, 0) for slot, tokens in texts)

    def read(self, texts):
        self.now += self.read_s
        self.held.update((slot, len(tokens) - 1) for slot, tokens in texts)

    def guess(self, texts, count):
        self.now += count * self.guess_s
        self.held.update((slot, len(tokens) + count - 1) for slot, tokens in texts)
        return [[7] * count for _ in texts]


def request(slot=0, limit=10_000):
    made = Sequence(slot, [1] * 40, Sampling(), Sampler(Sampling()), limit, None)
    made.slot = slot
    return made


def costs(slope_s=0.002):
    """The costs of a model whose step takes STEP_S, and ``slope_s`` for each further token."""
    known = StepCosts()
    for tokens in (1, 4, 8, 2, 6, 1) * 30:
        known.observe(tokens, STEP_S + (tokens - 1) * slope_s)
    return known


def work(guesses, machine, steps, *, right, requests=None, slope_s=0.002):
    """Run steps in which the first ``right`` of the guesses are right; return how many were guessed in each."""
    requests, known, counts = requests or [request()], costs(slope_s), []
    for _ in range(steps):
        for one, draft in zip(requests, guesses.drafts(requests, 24, known), strict=True):
            accepted = min(right, len(draft))
            one.accepted += accepted
            one.answer += [7] * (accepted + 1)
            counts.append(len(draft))
        machine.now += STEP_S
    return counts


def test_a_fast_drafter_that_is_right_guesses_much():
    machine = Machine(guess_s=0.001)
    counts = work(ModelGuesses(machine, clock=lambda: machine.now), machine, 60, right=9)
    assert 0 not in counts
    assert counts[-1] == MOST_GUESSES


@pytest.mark.parametrize(
    ("guess_s", "read_s", "right"),
    [(0.009, 0.0, 9), (0.001, 0.0, 0), (0.001, 5.0, 9)],
    ids=["as slow as the model", "always wrong", "its reading takes too long"],
)
def test_below_a_tenth_more_it_rests_and_is_tried_again_ever_more_rarely(guess_s, read_s, right):
    machine = Machine(guess_s, read_s)
    guesses = ModelGuesses(machine, clock=lambda: machine.now)
    counts = work(guesses, machine, 40, right=right)
    assert all(counts[:TRIAL_STEPS])
    assert not any(counts[-10:])
    began = machine.now
    tried = sum(map(bool, work(guesses, machine, 40_000, right=right)))
    assert 0 < tried < 8 * TRIAL_STEPS
    assert machine.now - began > 20 * PAUSES_S[0]


def test_an_answer_that_is_nearly_over_gets_no_more_guesses_than_it_can_take():
    machine = Machine(guess_s=0.001)
    guesses = ModelGuesses(machine, clock=lambda: machine.now)
    nearly, done = request(limit=2), request(1, limit=1)
    assert [len(draft) for draft in guesses.drafts([nearly, done], 24, costs())] == [1, 0]
    assert guesses.drafts([nearly], 0, costs()) == [[]]
    assert guesses.drafts([], 24, costs()) == []


def test_a_request_that_has_ended_teaches_nothing():
    machine = Machine(guess_s=0.001)
    guesses = ModelGuesses(machine, clock=lambda: machine.now)
    before, gone = guesses.chance, request()
    guesses.drafts([gone], 24, costs())
    gone.over = True
    guesses.drafts([], 24, costs())
    assert guesses.chance == before
