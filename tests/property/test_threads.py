"""The choice of threads on simulated machines: figures of two real cores, and a rule for more.

A machine has cores and other programs that spin. The times of a step are those measured with
SmolLM2 on two cores (tokens a second, mean of bimodal steps), time is simulated.
"""

import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine.free_cores import WINDOW_S
from agent.engine.threads import ThreadController

# (spinning programs, threads) -> tokens a second
DECODE = {(0, 1): 73, (0, 2): 102, (1, 1): 70, (1, 2): 25, (2, 1): 44, (2, 2): 21}
PREFILL = {(0, 1): 101, (0, 2): 200, (1, 1): 98, (1, 2): 80, (2, 1): 67, (2, 2): 49}


class Machine:
    def __init__(self, speed, cores, tokens, seed=0):
        self.speed, self.cores, self.tokens = speed, cores, tokens
        self.random = random.Random(seed)
        self.spinning = 0
        self.seen = None  # what the load shows of those that spin, where that is not all
        self.now = 100.0
        self.controller = ThreadController(cores)
        self.looks = []

    def run(self, seconds):
        """Run steps for a while; return the tokens a second."""
        begin, done = self.now, 0
        while self.now - begin < seconds:
            chosen = self.controller.choose(self.free(), self.tokens, self.now)
            mean = self.tokens / self.speed(self.spinning, chosen)
            crowded = chosen + self.spinning > self.cores and chosen > 1
            spread = 0.6 / max(1.0, mean / 0.05) ** 0.5  # a long step is the mean of many short ones
            span = mean * (1 + self.random.choice([-spread, spread]) if crowded else self.random.uniform(0.95, 1.05))
            self.now += span
            self.controller.observe(chosen, self.tokens, span, self.now)
            done += self.tokens
        return done / (self.now - begin)

    def free(self):
        seen = self.spinning if self.seen is None else self.seen(self)
        self.looks = [*(look for look in self.looks if self.now - look[0] <= WINDOW_S), (self.now, seen)]
        return max(0.0, self.cores - statistics.median_low(others for _, others in self.looks))

    @property
    def threads(self):
        return self.controller.best(self.free())


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
@pytest.mark.parametrize(("table", "tokens"), [(DECODE, 1), (DECODE, 4), (PREFILL, 64), (PREFILL, 256)])
def test_as_good_as_the_best_fixed_number(table, tokens, spinning):
    machine = Machine(measured(table), 2, tokens)
    machine.spinning = spinning
    best = max(table[spinning, threads] for threads in (1, 2))
    assert machine.run(60) >= 0.95 * best


def test_others_that_come_and_go_in_an_instant_do_not_matter():
    """A reader of our tokens runs at every other look: that is no load that would slow two threads down."""
    machine = Machine(measured(DECODE), 2, 1)
    machine.seen = lambda machine: machine.random.randrange(2)
    machine.run(5)
    assert machine.run(60) >= 0.95 * DECODE[0, 2]


@settings(max_examples=40, deadline=None)
@given(cores=st.integers(1, 16), spinning=st.integers(0, 16), seed=st.integers(0, 1000))
def test_on_any_machine_it_stays_near_the_best(cores, spinning, seed):
    machine = Machine(many_cores(cores), cores, 1, seed)
    machine.spinning = min(spinning, cores)
    machine.run(1)
    best = max(machine.speed(machine.spinning, threads) for threads in range(1, cores + 1))
    assert machine.run(20) >= 0.9 * best


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("table", "tokens"), [(DECODE, 1), (PREFILL, 32)])
def test_back_to_all_cores_within_a_second(table, tokens, seed):
    machine = Machine(measured(table), 2, tokens, seed)
    machine.spinning = 2
    machine.run(20)
    assert machine.threads == 1
    machine.spinning = 0
    machine.run(0.8)  # and what is left of the step in which it ends
    assert machine.threads == 2


@pytest.mark.parametrize("seed", range(5))
def test_it_gives_way_soon_when_others_come(seed):
    machine = Machine(measured(DECODE), 2, 1, seed)
    machine.run(20)
    assert machine.threads == 2
    machine.spinning = 2
    machine.run(0.5)
    assert machine.threads == 1


def test_a_change_of_the_load_ends_the_longest_pause():
    """After minutes of one load a trial comes once a minute; a new load is answered at once all the same."""
    machine = Machine(measured(DECODE), 2, 1)
    machine.spinning = 2
    machine.run(300)
    machine.spinning = 0
    machine.run(0.4)
    assert machine.threads == 2
    assert machine.run(10) >= 0.95 * DECODE[0, 2]


def test_a_limit_that_no_load_shows_is_found_by_the_times_alone():
    """Two threads on a share of one core: nothing else runs, and yet two are slower."""
    machine = Machine(lambda _spinning, threads: {1: 60, 2: 20}[threads], 2, 1)
    machine.run(6)
    assert machine.threads == 1
    assert machine.run(60) >= 0.93 * 60


def test_cores_that_are_not_alike_are_found():
    """Four large cores and four small ones: what waits for the small ones waits long."""
    machine = Machine(lambda _spinning, threads: 40 * threads**0.8 if threads <= 4 else 20 * threads**0.8, 8, 1)
    machine.run(60)
    assert machine.threads == 4


def test_a_load_that_gives_way_is_found_by_the_times():
    """Two programs of the lowest priority spin: the load shows them, the steps do not feel them."""
    machine = Machine(lambda _spinning, threads: DECODE[0, threads], 2, 1)
    machine.seen = lambda machine: 2
    machine.run(6)
    assert machine.threads == 2
    assert machine.run(60) >= 0.95 * DECODE[0, 2]


def test_what_was_right_under_one_load_does_not_outlast_it():
    machine = Machine(lambda spinning, threads: DECODE[spinning, threads], 2, 1)
    machine.seen = lambda machine: 2  # a load that gives way at first, then one that does not
    machine.run(20)
    assert machine.threads == 2
    machine.spinning = 2
    machine.run(5)
    assert machine.threads == 1


def test_a_trial_that_does_not_look_better_ends_after_three_steps():
    controller, now, seen = ThreadController(2), 0.0, []
    for _ in range(600):
        seen.append(controller.choose(2.0, 1, now))
        span = {1: 0.019, 2: 0.012}[seen[-1]]
        now += span
        controller.observe(seen[-1], 1, span, now)
    assert now > 6
    assert seen.count(1) == 3


def test_a_step_that_takes_long_is_no_trial():
    controller = ThreadController(2)
    now = 0.0
    for _ in range(100):
        assert controller.choose(2.0, 256, now) == 2
        now += 1.3
        controller.observe(2, 256, 1.3, now)


def test_after_a_rest_it_begins_with_what_is_free():
    controller = ThreadController(8)
    assert controller.choose(8.0, 1, 0.0) == 8
    controller.observe(8, 1, 0.01, 0.01)
    assert controller.choose(2.1, 1, 10.0) == 2
    controller.observe(2, 1, 0.01, 10.01)
    assert controller.choose(8.0, 1, 20.0) == 8


def test_one_core_is_one_thread():
    controller = ThreadController(1)
    for step in range(1000):
        assert controller.choose(random.Random(step).random(), 1, step / 100) == 1
        controller.observe(1, 1, 0.01, (step + 1) / 100)
