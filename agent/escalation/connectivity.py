"""Can I talk to this target: the state of one target, and when it may next be asked. Pure.

    unknown --probe--> online --send fails--> offline | portal --probe--> online
                         '-- refused --> blocked --rare probe--> online

Times are monotonic seconds, passed in; randomness is injected. The wait between probes grows
by full jitter from 1 s to a cap and starts anew only when the target has replied to a send,
the device's own network has changed, or a user asks: a target whose list of models works
while its sends do not is not hammered.
"""

from __future__ import annotations

from enum import StrEnum
from random import Random

PROBE_BASE_S = 1.0
PROBE_FLOOR_S = 0.05
BLOCKED_RECHECK_S = 900.0
BACKOFF_CAP_S = 900.0
HELD_FLOOR_S = 15.0  # first look at an answer that a target has queued
TROUBLES_BEFORE_PAUSE = 3
WIDEST_WINDOW = 64


class Reach(StrEnum):
    """What is known of the way to a target."""

    UNKNOWN = "unknown"
    ONLINE = "online"
    OFFLINE = "offline"
    PORTAL = "portal"  # something else answers in its place
    BLOCKED = "blocked"  # it refuses this device until a person mends it


def full_jitter_s(random: Random, step: int, *, base_s: float, cap_s: float) -> float:
    """Return a wait drawn evenly from 0 to ``min(cap_s, base_s * 2**step)`` seconds."""
    return random.uniform(0.0, min(cap_s, base_s * 2.0 ** min(step, 32)))


class Circuit:
    """Says whether a send, a probe or patience is due, and for how many seconds."""

    def __init__(self, random: Random) -> None:
        self.reach = Reach.UNKNOWN
        self.reason = ""
        self._random = random
        self._step = 0  # probes and sends that found nobody, in a row
        self._troubles = 0  # sends that failed although somebody was there, in a row
        self._throttles = 0  # replies that asked for patience without saying how long, in a row
        self._probe_at_s = 0.0
        self._hold_until_s = 0.0
        self._window = 1

    def probe_in_s(self, now_s: float) -> float | None:
        """Return the seconds until a probe is due; None when the target is online."""
        return None if self.reach is Reach.ONLINE else max(0.0, self._probe_at_s - now_s)

    def hold_s(self, now_s: float) -> float:
        """Return for how long the target has asked for patience."""
        return max(0.0, self._hold_until_s - now_s)

    def window(self, concurrency: int) -> int:
        """Return how many sends may be under way: one after a return, then twice as many each time."""
        return min(self._window, concurrency)

    def found(self) -> None:
        """A probe was answered as the target would answer."""
        self.reach, self.reason = Reach.ONLINE, ""
        self._window = 1

    def replied(self, *, usable: bool) -> None:
        """The target itself replied to a send."""
        self.reach, self.reason = Reach.ONLINE, ""
        self._step = self._troubles = self._throttles = 0
        if usable:
            self._window = min(self._window * 2, WIDEST_WINDOW)

    def lost(self, reason: str, now_s: float, *, cap_s: float, portal: bool = False) -> None:
        """Nobody, or somebody else, was there."""
        self.reach, self.reason = (Reach.PORTAL if portal else Reach.OFFLINE), reason
        wait_s = full_jitter_s(self._random, self._step, base_s=PROBE_BASE_S, cap_s=cap_s)
        self._probe_at_s = now_s + max(wait_s, PROBE_FLOOR_S)
        self._step += 1

    def doubted(self) -> None:
        """A send got no reply: ask before the next one."""
        if self.reach is Reach.ONLINE:
            self.reach, self.reason = Reach.UNKNOWN, ""

    def blocked(self, reason: str, now_s: float) -> None:
        """The target refuses this device."""
        self.reach, self.reason = Reach.BLOCKED, reason
        self._probe_at_s = now_s + self._random.uniform(0.5, 1.0) * BLOCKED_RECHECK_S

    def throttled(self, reason: str, now_s: float, wait_s: float | None) -> float:
        """The target asks for patience, for ``wait_s`` or a backoff. Returns the wait in seconds."""
        self.reason = reason
        if wait_s is None:
            wait_s = max(1.0, full_jitter_s(self._random, self._throttles + 1, base_s=2.0, cap_s=BACKOFF_CAP_S))
            self._throttles += 1
        self._hold_until_s = max(self._hold_until_s, now_s + wait_s)
        self._window = 1
        return wait_s

    def troubled(self, now_s: float) -> None:
        """A send failed on the target's side. Several in a row pause the target, not only their rows."""
        self._troubles += 1
        if (excess := self._troubles - TROUBLES_BEFORE_PAUSE) >= 0:
            wait_s = full_jitter_s(self._random, excess, base_s=2.0, cap_s=BACKOFF_CAP_S)
            self._hold_until_s = max(self._hold_until_s, now_s + wait_s)

    def retry_now(self, *, blocked_too: bool) -> None:
        """Forget the waiting: the device's network has changed, or a user asks (``blocked_too``)."""
        self._step = 0
        if blocked_too:
            self._hold_until_s = 0.0
        if blocked_too or self.reach is not Reach.BLOCKED:
            self._probe_at_s = 0.0


def held_wait_ms(age_ms: int) -> int:
    """Return how long to leave a row alone that the target has queued: a quarter of its age, 15 s to 15 min."""
    return round(min(max(age_ms / 4, HELD_FLOOR_S * 1000), BACKOFF_CAP_S * 1000))
