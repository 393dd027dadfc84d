"""The choice of threads on simulated machines: figures of two real cores, and a rule for more.

A machine has cores and other programs that spin. The times of a step are those measured with
SmolLM2 on two cores (tokens a second, mean of bimodal steps), time is simulated.
"""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine.threads import ThreadController

# (spinning programs, threads) -> tokens a second
DECODE = {(0, 1): 73, (0, 2): 102, (1, 1): 70, (1, 2): 25, (2, 1): 44, (2, 2): 21}
PREFILL = {(0, 1): 101, (0, 2): 200, (1, 1): 98, (1, 2): 80, (2, 1): 67, (2, 2): 49}


class Machine:
    def __init__(self, speed, cores, tokens, seed=0):
        self.speed, self.cores, self.tokens = speed, cores, tokens
        self.random = random.Random(seed)
        self.spinning = 0
        self.now = 100.0
        self.controller = ThreadController(cores)
        self.free, self.sampled, self.chosen = float(cores), 100.0, cores

    def run(self, seconds):
        """Run steps for a while; return the tokens a second."""
        begin, done = self.now, 0
        while self.now - begin < seconds:
            if self.now - self.sampled >= 0.2:
                share = min(1.0, self.cores / (self.spinning + self.chosen))
                self.free, self.sampled = self.cores - self.spinning * share, self.now
            self.chosen = self.controller.choose(self.free, self.now)
            mean = self.tokens / self.speed(self.spinning, self.chosen)
            crowded = self.chosen + self.spinning > self.cores and self.chosen > 1
            spread = 0.6 / max(1.0, mean / 0.05) ** 0.5  # a long step is the mean of many short ones
            span = mean * (1 + self.random.choice([-spread, spread]) if crowded else self.random.uniform(0.95, 1.05))
            self.now += span
            self.controller.observe(self.chosen, self.tokens, span, self.now)
            done += self.tokens
        return done / (self.now - begin)


def measured(table):
    return lambda spinning, threads: table[spinning, threads]


def many_cores(cores):
    def speed(spinning, threads):
        free = max(1, cores - spinning)
        if threads <= free:
            return 60 * threads**0.8
        return 60 * free**0.8 * (0.9 if threads == 1 else 0.35)

    return speed


@pytest.mark.parametrize("spinning", [0, 1, 2])
@pytest.mark.parametrize(("table", "tokens"), [(DECODE, 1), (DECODE, 4), (PREFILL, 128)])
def test_as_good_as_the_best_fixed_number(table, tokens, spinning):
    machine = Machine(measured(table), 2, tokens)
    machine.spinning = spinning
    machine.run(5)
    best = max(table[spinning, threads] for threads in (1, 2))
    assert machine.run(60) >= 0.95 * best


@settings(max_examples=40, deadline=None)
@given(cores=st.integers(1, 16), spinning=st.integers(0, 16), seed=st.integers(0, 1000))
def test_on_any_machine_it_stays_near_the_best(cores, spinning, seed):
    machine = Machine(many_cores(cores), cores, 1, seed)
    machine.spinning = min(spinning, cores)
    machine.run(5)
    numbers = machine.controller._numbers
    best = max(machine.speed(machine.spinning, threads) for threads in numbers)
    assert machine.run(60) >= 0.9 * best


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("table", "tokens"), [(DECODE, 1), (PREFILL, 128)])
def test_back_to_all_cores_within_a_second(table, tokens, seed):
    machine = Machine(measured(table), 2, tokens, seed)
    machine.spinning = 2
    machine.run(20)
    assert machine.controller.threads == 1
    machine.spinning = 0
    machine.run(1.0)  # and what is left of the step in which it ends
    assert machine.controller.threads == 2


@pytest.mark.parametrize("seed", range(10))
def test_it_gives_way_soon_when_others_come(seed):
    machine = Machine(measured(DECODE), 2, 1, seed)
    machine.run(20)
    assert machine.controller.threads == 2
    machine.spinning = 2
    machine.run(1.5)
    assert machine.controller.threads == 1


def test_a_limit_that_no_load_shows_is_found_by_the_times_alone():
    """Two threads on a share of one core: nothing else runs, and yet two are slower."""
    machine = Machine(lambda _spinning, threads: {1: 60, 2: 20}[threads], 2, 1)
    machine.run(12)
    assert machine.controller.threads == 1


def test_after_a_rest_it_begins_with_what_is_free():
    controller = ThreadController(8)
    assert controller.choose(8.0, 0.0) == 8
    controller.observe(8, 1, 0.01, 0.01)
    assert controller.choose(2.1, 10.0) == 2
    controller.observe(2, 1, 0.01, 10.01)
    assert controller.choose(8.0, 20.0) == 8


def test_one_core_is_one_thread():
    controller = ThreadController(1)
    for step in range(100):
        assert controller.choose(random.Random(step).random(), step / 100) == 1
        controller.observe(1, 1, 0.01, (step + 1) / 100)
