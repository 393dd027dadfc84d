"""Threads around the steps: load, battery and heat, and what an operator reads of them."""

from types import SimpleNamespace

import pytest

from agent import device
from agent.device import PowerState
from agent.engine.threads import POWER_SPAN_S, StepKind, StepThreads

LOW = PowerState(battery_percent=12.0, on_battery=True)


class World:
    def __init__(self, monkeypatch, cores=8, **given):
        monkeypatch.setattr(device, "profile", lambda: SimpleNamespace(decode_threads=cores, logical_cores=cores))
        self.now, self.others, self.power = 100.0, 0.0, PowerState()
        self.rested = []
        self.threads = StepThreads(given.get("fixed", 0), others=self, power=lambda: self.power, clock=lambda: self.now)

    def wanted_cores(self, own, now, *, rested):
        self.rested.append(rested)
        return self.others

    def step(self, kind=StepKind.DECODE, seconds=0.02):
        threads = self.threads.begin(kind, 1)
        self.now += seconds
        self.threads.end()
        return threads


def test_all_cores_then_what_others_leave(monkeypatch):
    world = World(monkeypatch)
    assert world.step() == 8
    assert world.threads.choice == (choice := world.threads.choice)
    assert (choice.decode, choice.prefill, choice.reason) == (8, 8, "all cores are free")
    world.others = 3
    world.step()
    assert [world.step(kind) for kind in StepKind] == [5, 5, 5]
    assert world.threads.choice.reason == "other programs leave 5 of 8 cores"


def test_after_a_pause_the_load_is_looked_at_before_the_step(monkeypatch):
    world = World(monkeypatch)
    world.step()
    world.others = 6
    world.now += 5
    assert world.step() == 2
    assert world.rested == [True, False, True, False]


def test_after_a_pause_behind_such_steps_it_is_looked_at_too(monkeypatch):
    world = World(monkeypatch)
    world.step()
    world.now += 0.02
    world.threads.also(0.02)
    world.others = 6
    world.now += 5
    assert world.step() == 2
    assert world.rested == [True, False, True, False]


def test_steps_that_follow_without_a_look_count_as_times(monkeypatch):
    def tried(also):
        """Return how many steps begin with the faster number until it is chosen, with so many more behind each."""
        world = World(monkeypatch, cores=2)
        found = 0
        for number in range(1000):
            threads = world.threads.begin(StepKind.DECODE, 1)
            seconds = 0.02 if threads == 1 else 0.05
            found += threads == 1
            world.now += seconds
            world.threads.end()
            for _ in range(also):
                world.now += seconds
                world.threads.also(seconds)
            if world.threads.choice.decode == 1:
                assert len(world.rested) == number + 2, "the load is looked at after the first of them"
                return found
        pytest.fail("it was never chosen")

    assert tried(7) <= 2 < tried(0)


def test_a_load_that_cannot_be_told_is_none(monkeypatch):
    world = World(monkeypatch)
    world.others = None
    assert world.step() == 8


@pytest.mark.parametrize(
    ("power", "reason"),
    [
        (LOW, "at most 4 of 8, because the battery is at 12 %"),
        (PowerState(celsius=99.0, hot_celsius=95.0), "at most 4 of 8, because the processor is at 99 °C"),
        (PowerState(throttled=True), "at most 4 of 8, because the system slows the processor down to cool it"),
    ],
)
def test_half_the_cores_on_a_low_battery_or_when_hot(monkeypatch, power, reason):
    world = World(monkeypatch)
    world.power = power
    assert world.step() == 4
    assert world.threads.choice.reason == reason
    world.others = 6
    world.step()
    assert world.step() == 2
    world.others, world.power = 0, PowerState()
    world.now += POWER_SPAN_S
    assert world.step() == 8
    assert world.threads.choice.reason == "all cores are free"


def test_battery_and_heat_are_looked_at_now_and_then_in_a_long_run(monkeypatch):
    world = World(monkeypatch)
    world.step()
    world.power = LOW
    seen = [world.step(seconds=0.25) for _ in range(50)]
    changed = seen.index(4)
    assert 0 < changed * 0.25 <= POWER_SPAN_S + 0.25
    assert set(seen[changed:]) <= {3, 4, 2}  # a trial of fewer may fall into it


def test_one_core_stays_one_on_a_low_battery(monkeypatch):
    world = World(monkeypatch, cores=1)
    world.power = LOW
    assert world.step() == 1


def test_a_fixed_number_stays_whatever_happens(monkeypatch):
    world = World(monkeypatch, fixed=3)
    world.power, world.others = LOW, 8
    assert world.step() == 3
    assert world.threads.choice.reason == "engine.threads"
    assert not world.rested


def test_steps_that_somebody_waits_for_are_no_trial(monkeypatch):
    world = World(monkeypatch, cores=2)
    assert {world.step(StepKind.PREFILL, seconds=0.2) for _ in range(200)} == {2}
