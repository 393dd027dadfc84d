"""What other programs want of the machine, from what the system tells."""

import pytest

from agent.engine import free_cores
from agent.engine.free_cores import WINDOW_S, BusyTime, RunnableThreads


class Counted:
    """A file like /proc/loadavg; each pause takes the next number of runnable threads."""

    def __init__(self, tmp_path, *numbers):
        self.path = tmp_path / "loadavg"
        self.numbers = list(numbers)
        self.next()

    def next(self, _seconds=0.0):
        if self.numbers:
            self.path.write_text(f"0.20 0.18 0.12 {self.numbers.pop(0)}/812 11206\n")


def test_our_own_threads_are_no_other_program(tmp_path):
    threads = RunnableThreads(Counted(tmp_path, 5).path)
    assert threads.wanted_cores(2, 0.0, rested=True) == 3


def test_who_runs_at_one_look_and_not_at_the_next_is_passing_by(tmp_path):
    counted = Counted(tmp_path, 4, 3, 1)
    threads = RunnableThreads(counted.path, pause=counted.next)
    assert threads.wanted_cores(1, 0.0, rested=True) == 0
    counted = Counted(tmp_path, 4, 3, 3)
    threads = RunnableThreads(counted.path, pause=counted.next)
    assert threads.wanted_cores(1, 0.0, rested=True) == 2


def test_after_a_rest_earlier_looks_do_not_count(tmp_path):
    counted = Counted(tmp_path, 3)
    threads = RunnableThreads(counted.path, pause=counted.next)
    for step in range(20):
        assert threads.wanted_cores(1, step * 0.01, rested=False) == 2
    counted.numbers = [1]
    counted.next()
    assert threads.wanted_cores(1, 0.2, rested=True) == 0


def test_of_many_looks_the_median_counts_and_old_ones_leave(tmp_path):
    counted = Counted(tmp_path, 1)
    threads = RunnableThreads(counted.path, pause=counted.next)
    seen = []
    for step in range(60):
        counted.numbers = [1 if step < 30 else 3]
        counted.next()
        seen.append(threads.wanted_cores(1, step * 0.01, rested=False))
    changed = seen.index(2)
    assert seen == [0] * changed + [2] * (60 - changed)
    assert 0 < (changed - 30) * 0.01 < WINDOW_S


def test_fewer_runnable_threads_than_ours_is_nobody(tmp_path):
    assert RunnableThreads(Counted(tmp_path, 1).path).wanted_cores(2, 0.0, rested=True) == 0


def test_where_the_system_counts_no_threads_the_busy_time_has_to_do(monkeypatch):
    monkeypatch.setattr(free_cores, "_LOADAVG", "/nowhere/loadavg")
    monkeypatch.setattr(free_cores.RunnableThreads.__init__, "__defaults__", ("/nowhere/loadavg", lambda _: None))
    assert isinstance(free_cores.other_programs(), BusyTime)


def test_busy_time_of_others_since_the_last_look(monkeypatch):
    clock = {"now": 100.0, "busy": 50.0, "own": 10.0}
    monkeypatch.setattr(free_cores.time, "monotonic", lambda: clock["now"])
    monkeypatch.setattr(free_cores.time, "process_time", lambda: clock["own"])
    monkeypatch.setattr(free_cores, "_busy_seconds", lambda: clock["busy"])
    others = BusyTime()
    clock.update(now=100.5, busy=51.0, own=10.4)
    assert others.wanted_cores(1, 100.5, rested=False) == pytest.approx(1.2)
    clock.update(busy=55.0)
    assert others.wanted_cores(1, 100.55, rested=False) == pytest.approx(1.2)  # too short a span to mean anything
    assert others.wanted_cores(1, 103.0, rested=True) is None


def test_where_a_policy_denies_both_nothing_is_known(monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(free_cores.os, "open", denied)
    monkeypatch.setattr(free_cores.psutil, "cpu_times", denied)
    assert free_cores.other_programs().wanted_cores(1, 5.0, rested=False) is None
