"""What a target is to the dispatcher: bytes to send, one outcome for each send.

Another kind of target is one module and one entry in ``TARGETS``.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Protocol, TypeAlias, cast

import msgspec

from agent.escalation.personal_data import Recogniser
from agent.escalation.redaction import Redacted
from agent.records import CloudAnswer, Escalation, RequestRecord
from agent.settings import ConnectivitySettings, TargetSettings
from agent.storage.costs import Used
from agent.text_settings import RedactionSettings


class Online(msgspec.Struct, frozen=True):
    """A probe was answered as the target would answer."""


class Delivered(msgspec.Struct, frozen=True):
    """A usable answer."""

    answer: CloudAnswer
    left: bool = True  # bytes of the body left the device


class Offline(msgspec.Struct, frozen=True):
    """The target is not to be reached: not an attempt, the row waits until it is."""

    reason: str
    left: bool = False
    portal: bool = False  # something else answered in its place


class RateLimited(msgspec.Struct, frozen=True):
    """The target asks for patience: not an attempt."""

    reason: str
    until_ms: int | None = None  # None: it did not say until when
    left: bool = True


class Held(msgspec.Struct, frozen=True):
    """The target keeps the request in a queue of its own: the same key fetches the answer later."""

    reason: str
    left: bool = True


class Retry(msgspec.Struct, frozen=True):
    """The send failed in a way that another attempt can mend."""

    reason: str
    left: bool = True
    until_ms: int | None = None  # not before, where it said so
    silent: bool = False  # no reply came: whether the target is still there is unknown


class Blocked(msgspec.Struct, frozen=True):
    """The target refuses this device (key, quota, address): paused until a person mends it."""

    reason: str
    left: bool = True


class Rejected(msgspec.Struct, frozen=True):
    """This request will never be answered by this target."""

    reason: str
    left: bool = True
    used: Used | None = None  # what the target counted for an answer that is of no use


UNCOUNTED = Used(0, 0)  # there was an answer, surely paid for, and nobody knows how much
Outcome: TypeAlias = Delivered | Offline | RateLimited | Held | Retry | Blocked | Rejected
ProbeOutcome: TypeAlias = Online | Offline | RateLimited | Blocked


class Target(Protocol):
    """Somewhere bigger to escalate to. Reasons never hold text of a request or a reply."""

    @property
    def settings(self) -> TargetSettings: ...

    def outgoing(self, record: RequestRecord, row: Escalation) -> Redacted:
        """Return exactly the bytes that would leave, and the way back. Raises BodyGone past the retention, CannotRedact.

        Pure, and slow for a long text (searching 1 MB takes seconds): not for an event loop.
        """
        ...

    async def send(self, row: Escalation, record: RequestRecord, outgoing: Redacted) -> Outcome:
        """Send once. Does not raise for anything that the network or the target does."""
        ...

    async def probe(self) -> ProbeOutcome:
        """Ask, without any text of a request, whether the target answers as itself."""
        ...

    def give_up(self) -> None:
        """End the sends under way: each gets the outcome of a deadline that has passed."""
        ...

    async def close(self) -> None:
        """Close idle connections."""
        ...


TARGETS = {"openai": "agent.escalation.openai_target:OpenAITarget"}


def wall_clock_ms() -> int:
    """Return the time in milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


def make_target(
    settings: TargetSettings,
    connectivity: ConnectivitySettings,
    redaction: RedactionSettings,
    *,
    now_ms: Callable[[], int] = wall_clock_ms,
    names: Recogniser | None = None,
) -> Target:
    """Build the target of a configuration section. Raises ConfigError when its address does not parse."""
    module, _, attribute = TARGETS["openai"].partition(":")
    factory = getattr(importlib.import_module(module), attribute)
    return cast("Target", factory(settings, connectivity, redaction, now_ms=now_ms, names=names))
