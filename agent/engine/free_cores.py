"""How much of the machine other programs leave free at this moment.

What counts is who wants to run now, not who ran lately: a mean over the last seconds holds the
load of a program that has just ended, and a request that comes after its turn would pay for
it. Linux tells the number of threads that run or wait for a core at an instant; a few such
looks, taken at the ends of steps, are enough. Elsewhere the time that the cores were busy since
the last look has to do.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import psutil

WINDOW_S = 0.25  # looks of this span count
ENOUGH_LOOKS = 3
RESTED_LOOKS = 10  # after a rest: those who brought us work are still busy with it for some milliseconds
NEXT_LOOK_S = 0.001  # what wants to run at one look and no more at the next was passing by
SHORTEST_SPAN_S = 0.1  # of busy time: the clocks of some systems tick in 1/64 s
_LOADAVG = Path("/proc/loadavg")


class OtherPrograms(Protocol):
    """What others want of the machine."""

    def wanted_cores(self, own: int, now: float, *, rested: bool) -> float | None:
        """Return how many cores others want, 0 or more; None: it cannot be told.

        ``own`` of our threads run at the moment of the call. ``now``: monotonic, seconds.
        ``rested``: we have not worked since the last call, which says nothing of the present.
        """
        ...


class _Look(NamedTuple):
    at: float
    others: int


class RunnableThreads:
    """Linux: the threads of the whole machine that run or wait for a core."""

    def __init__(self, path: Path = _LOADAVG, pause: Callable[[float], None] = time.sleep) -> None:
        """Raises OSError where the system does not tell."""
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # held for life: a look is one system call
        self._pause = pause
        self._looks: deque[_Look] = deque()

    def wanted_cores(self, own: int, now: float, *, rested: bool) -> float:
        """Return the median of the looks of the last 0.25 s, this one among them.

        The lower one of two: who runs at one look in two shares the cores with us well enough.
        """
        while self._looks and (rested or now - self._looks[0].at > WINDOW_S):
            self._looks.popleft()
        others = self._others(own)
        for _ in range((RESTED_LOOKS if rested else ENOUGH_LOOKS) - 1 - len(self._looks)):
            if not others:
                break
            self._pause(NEXT_LOOK_S)
            others = min(others, self._others(own))
        self._looks.append(_Look(now, others))
        return statistics.median_low(look.others for look in self._looks)

    def _others(self, own: int) -> int:
        runnable = os.pread(self._file, 128, 0).split()[3].partition(b"/")[0]  # "0.20 0.18 0.12 1/80 11206"
        return max(0, int(runnable) - own)


class BusyTime:
    """Any system: the time that the cores were busy for others since the last look."""

    def __init__(self) -> None:
        self._at, self._busy, self._own = time.monotonic(), _busy_seconds(), time.process_time()
        self._others: float | None = None

    def wanted_cores(self, own: int, now: float, *, rested: bool) -> float | None:
        """Return the mean since the last look; None after a rest."""
        del own
        span = now - self._at
        if span < SHORTEST_SPAN_S and not rested:
            return self._others
        busy, own_time = _busy_seconds(), time.process_time()
        self._others = None if rested else max(0.0, (busy - self._busy) - (own_time - self._own)) / span
        self._at, self._busy, self._own = now, busy, own_time
        return self._others


class Unseen:
    """A policy that denies both: nobody knows what others want."""

    def wanted_cores(self, own: int, now: float, *, rested: bool) -> None:
        """Return None."""
        del own, now, rested


def other_programs() -> OtherPrograms:
    """Return the best that this system offers."""
    for way in (RunnableThreads, BusyTime):
        try:
            return way()
        except OSError:
            continue
    return Unseen()


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    # In the times of a user those of its guests are contained.
    names = ("user", "nice", "system", "irq", "softirq", "steal")
    return float(sum(getattr(times, name, 0.0) for name in names))
