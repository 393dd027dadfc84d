"""Escalation from the command line itself: a probe, the bytes of a row, a drain without a daemon."""

from __future__ import annotations

import asyncio
import random

import msgspec

from agent import device
from agent.cli.access import now_ms
from agent.errors import ConfigError, InvalidRequest
from agent.escalation.budget import Budget
from agent.escalation.dispatcher import Dispatcher
from agent.escalation.target import Blocked, Offline, Online, RateLimited, make_target
from agent.records import Escalation, RequestRecord
from agent.settings import Settings, TargetSettings
from agent.storage import Storage
from agent.types import EgressPolicy

POLL_S = 0.1
UNREACHABLE = frozenset({"offline", "portal", "blocked"})


class Probed(msgspec.Struct, frozen=True):
    """Whether a target can be used now, and why not."""

    ok: bool
    state: str
    reason: str | None = None


async def probe(target: TargetSettings, settings: Settings) -> Probed:
    """Ask a target whether it answers as itself. No text of any request leaves."""
    client = make_target(target, settings.connectivity, settings.redaction, now_ms=now_ms)
    try:
        outcome = await client.probe()
    finally:
        await client.close()
    match outcome:
        case Online():
            return Probed(ok=True, state="online")
        case Offline(reason=reason):
            return Probed(ok=False, state="offline", reason=reason)
        case RateLimited(reason=reason):
            return Probed(ok=False, state="rate_limited", reason=reason)
        case Blocked(reason=reason):
            return Probed(ok=False, state="blocked", reason=reason)


def body_of(settings: Settings, record: RequestRecord, row: Escalation, target: str | None) -> bytes:
    """Return exactly the bytes that would leave for this row.

    A row without a target needs ``target``, or a configuration with only one. Raises ConfigError
    when the row's target is not configured any more, BodyGone past the retention.
    """
    name = target or row.target or _only(settings)
    chosen = next((one for one in settings.targets if one.name == name), None)
    if chosen is None:
        raise ConfigError(f"target {name} is not configured: name another with --target")
    return make_target(chosen, settings.connectivity, settings.redaction, now_ms=now_ms).outgoing(record, row).body


def _only(settings: Settings) -> str:
    able = [one.name for one in settings.targets if one.egress is not EgressPolicy.NEVER]
    if len(able) != 1:
        known = ", ".join(able) or "none; add one with `outrider target add`"
        raise InvalidRequest(
            f"this row has no target yet: name one with --target; configured are {known}", param="target"
        )
    return able[0]


async def drain(storage: Storage, settings: Settings) -> None:
    """Send what may leave now; return when nothing is left that a reachable target would take."""
    dispatcher = Dispatcher(
        storage,
        settings.targets,
        settings.connectivity,
        settings.queue,
        settings.redaction,
        now_ms=now_ms,
        random=random.Random(),  # noqa: S311 - jitter, not a secret
        on_battery=device.on_battery,
        budget=Budget(settings.targets, settings.prices, settings.budgets),
    )
    await dispatcher.start()
    try:
        await dispatcher.drain()
        while await _goes_on(storage, dispatcher):  # noqa: ASYNC110 - the database has no event for "nothing left"
            await asyncio.sleep(POLL_S)
    finally:
        await dispatcher.stop()


async def _goes_on(storage: Storage, dispatcher: Dispatcher) -> bool:
    """Whether a target is still being probed or sent to, or has rows that can go now."""
    for status in dispatcher.status():
        if status.in_flight:
            return True
        waits = status.state in UNREACHABLE or status.held_until_ms is not None
        if waits or not await storage.outbox.pending_for(status.name):
            continue
        at_ms = await storage.outbox.next_available_ms(status.name, now_ms())
        if at_ms is None or at_ms <= now_ms():
            return True
    return False
