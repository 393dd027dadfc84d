"""How many threads the next step gets: all cores when they are free, fewer when they are not.

The threads of a step meet at a barrier after every operation. One that has to wait for its
core holds up all others, so on a busy machine two threads can be slower than one by a factor
of three, and on a free one the other way round. No fixed number is right.

What other programs want of the machine at this instant gives the first answer, within a step
or two. The times of the steps themselves correct it, by short trials with the number beside
it: a load that gives way, cores that are not alike, and a quota show in the times alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from agent import device
from agent.engine.free_cores import OtherPrograms, other_programs
from agent.engine.worker_status import ThreadChoice

WINDOW_STEPS = 4  # steps that a number of threads is judged by: few, the machine changes
TRIAL_STEPS = 3
BOLD_TRIAL_STEPS = 8  # of a trial against what the load advises: lucky steps come in a row
ENOUGH_S = 0.25  # steps that took this long together are enough, however few
LONGEST_TRIAL_STEP_S = 0.1  # a longer step is no trial: somebody waits for its end, and it may take twice as long
HOPELESS = 1.8  # a trial this many times slower ends after one step
MARGIN = 0.08  # advantage that a trial needs over what the load advises
ALIKE = 1.25  # steps whose sizes differ by a larger factor are not compared
# Pauses between trials, seconds: the first, the factor to the next, the longest.
AS_ADVISED = (2.0, 4.0, 60.0)
AGAINST_ADVICE = (1.0, 2.0, 4.0)
PART_OF_A_CORE = 0.35  # missing from a core that still counts as free
REST_S = 0.3  # after a pause this long the load is looked at anew
STALE_S = 1.0  # step times older than this say nothing
POWER_SPAN_S = 10.0  # between looks at battery and heat
STRAIN_SHARE = 0.5  # of the cores, on a low battery or when hot


class StepKind(StrEnum):
    """What a step does; each kind has a best number of threads of its own."""

    DECODE = "decode"  # one token for every request
    PREFILL = "prefill"  # pieces of prompts: much to compute between two barriers
    SCORE = "score"  # the scoring context's batches of one size


class _Step(NamedTuple):
    tokens: int
    seconds: float


class _Level:
    """What is best while the load advises one number: that number, until step times show another."""

    def __init__(self, advised: int, most: int) -> None:
        self.threads = advised
        self._advised = advised
        self._most = most
        self._steps: deque[_Step] = deque(maxlen=WINDOW_STEPS)
        self._trial: int | None = None
        self._trial_steps: list[_Step] = []
        self._tried = 0
        self._pause = AS_ADVISED[0]
        self._due = float("-inf")
        self._last = float("-inf")

    def choose(self, tokens: int, now: float) -> int:
        if now - self._last > STALE_S:
            self._forget()
            self._due = max(self._due, now + (self._pause if self.threads == self._advised else AGAINST_ADVICE[0]))
        if self._steps and not 1 / ALIKE <= tokens / self._steps[-1].tokens <= ALIKE:
            self._forget()
        if (
            self._trial is None
            and now >= self._due
            and _enough(self._steps, WINDOW_STEPS)
            and tokens * _cost(self._steps) <= LONGEST_TRIAL_STEP_S
        ):
            self._trial = self._next_trial()
        return self._trial or self.threads

    def observe(self, threads: int, step: _Step, now: float) -> None:
        self._last = now
        if self._trial is None or threads != self._trial:
            if threads == self.threads:
                self._steps.append(step)
            return
        self._trial_steps.append(step)
        bold = abs(threads - self._advised) > abs(self.threads - self._advised)
        ratio = _cost(self._trial_steps) / _cost(self._steps)
        wanted = BOLD_TRIAL_STEPS if bold and ratio < 1 else TRIAL_STEPS
        if ratio > HOPELESS or _enough(self._trial_steps, wanted):
            self._judge(threads, better=ratio < (1 - MARGIN if bold else 1), now=now)

    def _judge(self, trial: int, *, better: bool, now: float) -> None:
        steps = self._trial_steps
        self._trial, self._trial_steps = None, []
        if better:
            self.threads = trial
            self._steps.clear()
            self._steps.extend(steps)
        first, factor, longest = AS_ADVISED if self.threads == self._advised else AGAINST_ADVICE
        self._pause = first if better else min(longest, max(first, factor * self._pause))
        self._due = now + self._pause

    def _next_trial(self) -> int | None:
        """Return the next of the numbers worth a trial, in turn; first the nearest."""
        here = self.threads
        others = dict.fromkeys([here - 1, here + 1, here // 2, 2 * here])
        worth = [number for number in others if 1 <= number <= self._most and number != here]
        if not worth:
            return None
        self._tried += 1
        return worth[self._tried % len(worth) - 1]

    def _forget(self) -> None:
        self._steps.clear()
        self._trial, self._trial_steps = None, []


class ThreadController:
    """Chooses for one kind of steps. Pure: times are passed in, seconds."""

    def __init__(self, most: int) -> None:
        """``most`` is the number of cores that may be used, at least 1."""
        self._most = most
        self._levels = [_Level(number, most) for number in range(1, most + 1)]
        self._level = self._levels[-1]

    def best(self, free_cores: float) -> int:
        """Return the number that is best with so many free cores, as far as is known now."""
        return self._levels[self._advised(free_cores) - 1].threads

    def choose(self, free_cores: float, tokens: int, now: float) -> int:
        """Return the number of threads for the step of so many tokens that begins now.

        ``free_cores`` is what other programs leave of the machine, 0 or more.
        """
        self._level = self._levels[self._advised(free_cores) - 1]
        return self._level.choose(tokens, now)

    def observe(self, threads: int, tokens: int, seconds: float, now: float) -> None:
        """Take the time of a step that ended now, with the number of threads it had."""
        self._level.observe(threads, _Step(tokens, seconds), now)

    def _advised(self, free_cores: float) -> int:
        return min(self._most, int(max(1.0, free_cores + PART_OF_A_CORE)))


class StepThreads:
    """Chooses and measures around each step of a runtime. Used by one thread."""

    def __init__(
        self,
        fixed: int,
        *,
        others: OtherPrograms | None = None,
        power: Callable[[], device.PowerState] = device.power_state,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``fixed``: this number always; 0: what the machine has free, up to its physical cores."""
        profile = device.profile()
        self.latest = 0  # the number that the latest step had
        self._fixed = fixed
        self._all = profile.decode_threads
        self._cores = profile.logical_cores
        self._others = others or other_programs()
        self._power = power
        self._clock = clock
        self._strain = ""
        self._strain_seen = float("-inf")
        self._most = self._all
        self._controllers = {kind: ThreadController(self._all) for kind in StepKind}
        self._free = float(self._all)
        self._last = float("-inf")
        self._begun = (StepKind.DECODE, 1, self._last)
        self._more: list[float] = []  # seconds of steps like the latest that followed it

    def begin(self, kind: StepKind, tokens: int) -> int:
        """Return the number of threads for the step of so many tokens that begins now."""
        if self._fixed:
            self.latest = self._fixed
            return self._fixed
        begin = self._clock()
        if self._more:
            self._observe_more()
        if begin - self._last > REST_S:
            self._look_at_power(begin)
            self._look_at_load(1, begin, rested=True)
        self._begun = (kind, tokens, begin)
        self.latest = self._controllers[kind].choose(self._free, tokens, begin)
        return self.latest

    def end(self) -> None:
        """Take the time of the step that ``begin`` began. Not to be called for one that failed."""
        if self._fixed:
            return
        end = self._clock()
        kind, tokens, begin = self._begun
        self._controllers[kind].observe(self.latest, tokens, end - begin, end)
        # Now, before anybody is told of the step: its threads run, and those who read its tokens do not yet.
        self._look_at_load(self.latest, end, rested=False)
        self._look_at_power(end)
        self._last = end

    def also(self, seconds: float) -> None:
        """Take the time of one more step of the same kind, size and threads; it is looked at when the next begins."""
        if not self._fixed:
            self._more.append(seconds)
            self._last = self._clock()

    def _observe_more(self) -> None:
        kind, tokens, _ = self._begun
        for seconds in self._more:
            self._controllers[kind].observe(self.latest, tokens, seconds, self._last)
        self._more.clear()

    @property
    def most(self) -> int:
        """The most threads that a step may get now."""
        return self._fixed or self._most

    @property
    def choice(self) -> ThreadChoice:
        """What is in use now."""
        if self._fixed:
            return ThreadChoice(self._fixed, self._fixed, "engine.threads")
        decode, prefill = (self._controllers[kind].best(self._free) for kind in (StepKind.DECODE, StepKind.PREFILL))
        return ThreadChoice(decode, prefill, self._reason(decode))

    def _reason(self, decode: int) -> str:
        free = min(self._most, int(max(1.0, self._free + PART_OF_A_CORE)))
        if self._strain:
            why = f"at most {self._most} of {self._all}, because {self._strain}"
        elif free == self._all:
            why = "all cores are free" if self._all > 1 else "there is one core"
        else:
            why = f"other programs leave {free} of {self._all} cores"
        return why if decode == free else f"{why}, but steps are faster with {decode}"

    def _look_at_load(self, own: int, now: float, *, rested: bool) -> None:
        wanted = self._others.wanted_cores(own, now, rested=rested)
        self._free = float(self._all) if wanted is None else max(0.0, min(self._all, self._cores - wanted))

    def _look_at_power(self, now: float) -> None:
        if now - self._strain_seen < POWER_SPAN_S:
            return
        self._strain_seen = now
        self._strain = self._power().strain
        most = max(1, int(self._all * STRAIN_SHARE)) if self._strain else self._all
        if most != self._most:
            self._most = most
            self._controllers = {kind: ThreadController(most) for kind in StepKind}


def _enough(steps: list[_Step] | deque[_Step], wanted: int) -> bool:
    return len(steps) >= wanted or sum(step.seconds for step in steps) >= ENOUGH_S


def _cost(steps: list[_Step] | deque[_Step]) -> float:
    """Return the mean seconds of a token."""
    return sum(step.seconds for step in steps) / max(1, sum(step.tokens for step in steps))
