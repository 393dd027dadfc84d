"""Guesses of a draft model: how many, and whether at all.

What a guess brings is its chance to be right, what it costs a step of the small model and a row
more in the step of the large one; all three are measured as it goes. Where the best number of
guesses promises less than ``WORTHWHILE`` times the speed of none, it rests, and is tried again
after a while.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from agent.engine.sequence import Sequence as Request
from agent.engine.step_costs import WORTHWHILE, StepCosts

MOST_GUESSES = 8  # of one request in one step
TRIAL_GUESSES = 2
TRIAL_STEPS = 6
PAUSES_S = (10.0, 2.0, 320.0)  # the first after a trial that failed, the factor to the next, the longest
READ_TOKENS = 16  # unread ones of a request above which they are read apart, and counted apart
ANSWER_TOKENS = 64  # over which the reading of a prompt is counted
_USUAL, _USUAL_WEIGHT = 0.7, 8.0  # chance of a guess before one was seen, and the guesses it counts as
_FADING = 0.98
_NEW_SHARE = 0.3  # weight of the latest time in a mean


class Drafter(Protocol):
    """A small model with the tokens of the large one, and slots of the same numbers."""

    def unread(self, texts: Sequence[tuple[int, Sequence[int]]]) -> int:
        """Return how many tokens of these texts (slot, all tokens) it has to read first."""
        ...

    def read(self, texts: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Read all but the last token of each."""
        ...

    def guess(self, texts: Sequence[tuple[int, Sequence[int]]], count: int) -> list[list[int]]:
        """Return the next tokens of each, at most ``count``, one after another."""
        ...


class ModelGuesses:
    """Guesses for the requests of one scheduler."""

    def __init__(self, drafter: Drafter, *, clock: Callable[[], float] = time.perf_counter) -> None:
        """``clock`` gives seconds."""
        self._drafter = drafter
        self._clock = clock
        self._right, self._tries = _USUAL * _USUAL_WEIGHT, _USUAL_WEIGHT
        self._round_s: float | None = None  # of one guess for all that decode
        self._read_s = 0.0  # of what is read of a request before its first guess
        self._given: list[tuple[Request, int, int]] = []  # request, tokens accepted before, guesses
        self._trial_left = TRIAL_STEPS
        self._resting_until = float("-inf")
        self._pause_s = PAUSES_S[0]

    @property
    def chance(self) -> float:
        """The chance of a guess to be right, given that those before it were."""
        return self._right / self._tries

    def drafts(self, requests: Sequence[Request], room: int, costs: StepCosts) -> list[list[int]]:
        """Return the guesses for each request, at most ``room`` together."""
        self._learn()
        nothing: list[list[int]] = [[] for _ in requests]
        most = min(MOST_GUESSES, room // max(1, len(requests)))
        count = self._count(len(requests), most, costs)
        # The last token of an answer comes from a row: it is never decoded itself.
        wanted = [min(count, request.limit - request.generated - 1) for request in requests]
        chosen = [index for index, number in enumerate(wanted) if number > 0]
        if not chosen:
            return nothing
        texts = [(requests[index].slot, requests[index].prompt + requests[index].answer) for index in chosen]
        begun = self._clock()
        if self._drafter.unread(texts) > READ_TOKENS * len(texts):
            self._drafter.read(texts)
            read, begun = begun, self._clock()
            self._read_s += _NEW_SHARE * ((begun - read) / len(texts) - self._read_s)
        found = self._drafter.guess(texts, max(wanted[index] for index in chosen))
        if rounds := max(map(len, found)):
            spent = (self._clock() - begun) / rounds
            self._round_s = spent if self._round_s is None else self._round_s + _NEW_SHARE * (spent - self._round_s)
        for index, guesses in zip(chosen, found, strict=True):
            nothing[index] = guesses[: wanted[index]]
            self._given.append((requests[index], requests[index].accepted, len(nothing[index])))
        return nothing

    def _learn(self) -> None:
        """See what became of the latest guesses. Of a request that has ended nothing is learned."""
        for request, before, count in self._given:
            if request.over or not count:
                continue
            right = request.accepted - before
            self._right = self._right * _FADING + right
            self._tries = self._tries * _FADING + right + (right < count)
        self._given = []

    def _count(self, together: int, most: int, costs: StepCosts) -> int:
        """Return how many tokens to guess for each of the requests that decode together; 0: none."""
        now = self._clock()
        if not together or most < 1 or now < self._resting_until:
            return 0
        if self._trial_left or self._round_s is None:
            self._trial_left = max(0, self._trial_left - 1)
            return min(TRIAL_GUESSES, most)
        count, gain = self._best(together, most, costs, self._round_s)
        if gain >= WORTHWHILE:
            self._pause_s = PAUSES_S[0]
            return count
        self._resting_until = now + self._pause_s
        self._pause_s = min(PAUSES_S[2], PAUSES_S[1] * self._pause_s)
        self._trial_left = TRIAL_STEPS
        return 0

    def _best(self, together: int, most: int, costs: StepCosts, round_s: float) -> tuple[int, float]:
        """Return the best number of guesses and its speed as a multiple of that without any."""
        plain = together / costs.seconds(together)
        reading_s = self._read_s / ANSWER_TOKENS  # of each token of an answer
        best, gain, tokens, reach = 0, 0.0, 1.0, 1.0
        for count in range(1, most + 1):
            reach *= self.chance
            tokens += reach
            seconds = costs.seconds(together * (1 + count)) + count * round_s + together * tokens * reading_s
            if together * tokens / seconds > gain * plain:
                best, gain = count, together * tokens / seconds / plain
        return best, gain
