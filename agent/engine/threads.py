"""How many threads the next step gets: all cores when they are free, fewer when they are not.

The threads of a step meet at a barrier after every operation. One that has to wait for its
core holds up all others, so on a busy machine two threads can be slower than one by a factor
of three, and on a free one the other way round. No fixed number is right. Here the times of
the steps themselves decide, by short trials; what other programs leave free of the machine
only says when a trial is worth its cost, and in which direction.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import psutil

from agent import device
from agent.engine.runtime import Chunk

WINDOW_STEPS = 4  # steps that a number of threads is judged by: few, the machine changes
TRIAL_STEPS = 3
ENOUGH_S = 0.25  # steps that took this long together are enough, however few
TRIAL_HOPELESS = 1.8  # a trial this many times slower ends after one step
SHORTEST_PAUSE_S = 0.2  # between trials, while what is free asks for another number
LONGEST_PAUSE_S = 4.0
EXPLORE_S = 5.0  # first pause between trials that nothing asks for: limits that no load shows
LONGEST_EXPLORE_S = 60.0
NEWS_CORES = 0.3  # a change of what is free that makes an old verdict worthless
PART_OF_A_CORE = 0.35  # missing from a core that still counts as free
MARGIN = 0.08  # advantage that a trial needs against the load's advice, or may lack with it
REST_S = 1.0  # after a pause this long the past says nothing
SAMPLE_S = 0.2


class _Step(NamedTuple):
    tokens: int
    seconds: float


class ThreadController:
    """Chooses for one kind of steps (decoding, or prompts). Pure: times are passed in, seconds."""

    def __init__(self, most: int) -> None:
        """``most`` is the number of cores that may be used, at least 1."""
        self._numbers = sorted({most, *(1 << power for power in range(most.bit_length()) if 1 << power <= most)})
        self.threads = most
        self._steps: deque[_Step] = deque(maxlen=WINDOW_STEPS)
        self._trial: int | None = None
        self._trial_steps: list[_Step] = []
        self._free = float(most)
        self._free_at_verdict = float(most)
        self._pause = SHORTEST_PAUSE_S
        self._explore = EXPLORE_S
        self._next_trial = 0.0
        self._next_explore = EXPLORE_S
        self._last = float("-inf")

    def choose(self, free_cores: float, now: float) -> int:
        """Return the number of threads for the step that begins now.

        ``free_cores`` is what other programs leave of the machine, 0 or more.
        """
        self._free = free_cores
        advised = max(number for number in self._numbers if number <= max(1.0, free_cores + PART_OF_A_CORE))
        if now - self._last >= REST_S:
            self._settle(advised, now)
            return advised
        if abs(free_cores - self._free_at_verdict) >= NEWS_CORES:
            self._pause = SHORTEST_PAUSE_S
            self._next_trial = min(self._next_trial, now)
            self._free_at_verdict = free_cores
        if self._trial is None and _enough(self._steps, WINDOW_STEPS):
            if advised != self.threads and now >= self._next_trial:
                self._trial = advised
            elif now >= self._next_explore and self.threads > 1:
                # More against the load's advice is never worth a trial, fewer may be.
                self._trial = self._numbers[self._numbers.index(self.threads) - 1]
        return self._trial or self.threads

    def observe(self, threads: int, tokens: int, seconds: float, now: float) -> None:
        """Take the time of a step that ended now, with the number of threads it had."""
        self._last = now
        step = _Step(tokens, seconds)
        if self._trial is None or threads != self._trial:
            if threads == self.threads:
                self._steps.append(step)
            return
        self._trial_steps.append(step)
        ratio = _cost(self._trial_steps) / _cost(self._steps)
        if _enough(self._trial_steps, TRIAL_STEPS) or ratio > TRIAL_HOPELESS:
            self._judge(self._trial, ratio, now)

    def _judge(self, trial: int, ratio: float, now: float) -> None:
        fits = trial <= max(1.0, self._free + PART_OF_A_CORE)
        with_the_load = fits == (trial > self.threads)
        self._free_at_verdict = self._free
        if ratio < (1 + MARGIN if with_the_load and trial < self.threads else 1 - MARGIN):
            steps = self._trial_steps
            self._settle(trial, now)
            self._steps.extend(steps)
            return
        self._trial, self._trial_steps = None, []
        self._pause = min(2 * self._pause, LONGEST_PAUSE_S)
        self._explore = min(2 * self._explore, LONGEST_EXPLORE_S)
        self._next_trial = now + self._pause
        self._next_explore = now + self._explore

    def _settle(self, threads: int, now: float) -> None:
        self.threads = threads
        self._steps.clear()
        self._trial, self._trial_steps = None, []
        self._free_at_verdict = self._free
        self._pause, self._explore = SHORTEST_PAUSE_S, EXPLORE_S
        self._next_trial = now + self._pause
        self._next_explore = now + self._explore


class FreeCores:
    """What other programs leave of the machine, looked at every 0.2 s at most."""

    def __init__(self, cores: float) -> None:
        """``cores`` is what this process may use."""
        self._most = cores
        self._free = cores
        self._at, self._busy, self._own = time.monotonic(), _busy_seconds(), time.process_time()

    def now(self, now: float) -> float:
        """Return the cores left free in the span since the last look. ``now``: monotonic, seconds."""
        span = now - self._at
        if span >= SAMPLE_S:
            busy, own = _busy_seconds(), time.process_time()
            others = max(0.0, (busy - self._busy) - (own - self._own)) / span
            self._free = max(0.0, min(self._most, (psutil.cpu_count() or 1) - others))
            self._at, self._busy, self._own = now, busy, own
        return self._free


class StepThreads:
    """Chooses and measures around each step of a runtime."""

    def __init__(self, fixed: int) -> None:
        """``fixed``: this number always; 0: what the machine has free, up to its physical cores."""
        profile = device.profile()
        self._fixed = fixed
        self._free = FreeCores(profile.usable_cores)
        self._decode = ThreadController(profile.decode_threads)
        self._prefill = ThreadController(profile.decode_threads)

    @contextmanager
    def step(self, chunks: Sequence[Chunk]) -> Iterator[int]:
        """Give the number of threads for the step inside the block, and take its time."""
        if self._fixed:
            yield self._fixed
            return
        tokens = sum(len(chunk.tokens) for chunk in chunks)
        # Steps with a piece of a prompt have their own best number: they compute more between barriers.
        controller = self._decode if tokens == len(chunks) else self._prefill
        begin = time.monotonic()
        threads = controller.choose(self._free.now(begin), begin)
        yield threads
        end = time.monotonic()
        controller.observe(threads, tokens, end - begin, end)


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    # In the times of a user those of its guests are contained.
    names = ("user", "nice", "system", "irq", "softirq", "steal")
    return float(sum(getattr(times, name, 0.0) for name in names))


def _enough(steps: list[_Step] | deque[_Step], wanted: int) -> bool:
    return len(steps) >= wanted or sum(step.seconds for step in steps) >= ENOUGH_S


def _cost(steps: list[_Step] | deque[_Step]) -> float:
    """Return the mean seconds of a token."""
    return sum(step.seconds for step in steps) / max(1, sum(step.tokens for step in steps))
