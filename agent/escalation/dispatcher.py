"""Empties the outbox: one lane per configured target, woken by new rows and by the network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random

from agent.device import PowerState
from agent.escalation.budget import NO_BUDGET, Budget
from agent.escalation.charging import charging
from agent.escalation.connectivity import Circuit
from agent.escalation.consent import SENT_AT_ONCE, ToldNow, nothing_told
from agent.escalation.lane import Lane
from agent.escalation.netlink import LinkWatcher
from agent.escalation.personal_data import Recogniser
from agent.escalation.target import make_target
from agent.escalation.target_status import TargetStatus
from agent.escalation.thrift import Thrift
from agent.records import EscalationState
from agent.settings import ConnectivitySettings, QueueSettings, TargetSettings
from agent.storage import Storage
from agent.telemetry import LOG
from agent.text_settings import RedactionSettings

__all__ = ["Dispatcher", "TargetStatus"]

UNCONFIGURED = "unconfigured"
OLDEST_ROWS = 1000


class Dispatcher:
    """Sends what waits, as far as policy, connectivity and each target's pace allow.

    Rows of a target that is not configured (any more) wait; ``status`` names them.
    """

    def __init__(
        self,
        storage: Storage,
        targets: Sequence[TargetSettings],
        connectivity: ConnectivitySettings,
        queue: QueueSettings,
        redaction: RedactionSettings,
        *,
        now_ms: Callable[[], int],
        random: Random,
        on_battery: Callable[[], bool],
        power: Callable[[], PowerState] = PowerState,
        grace_s: float = 10.0,
        budget: Budget = NO_BUDGET,
        names: Recogniser | None = None,
        told_now: ToldNow = nothing_told,
    ) -> None:
        self._storage = storage
        self.names = names
        self.told_now = told_now
        self._connectivity = connectivity
        self._queue = queue
        self._redaction = redaction
        self._now_ms = now_ms
        self._random = random
        self._on_battery = on_battery
        self._thrift = Thrift(connectivity, power)
        self._grace_s = grace_s
        self._budget = budget
        self._wanted = tuple(targets)
        self._lanes: dict[str, Lane] = {}
        self._retiring: dict[asyncio.Task[None], Lane] = {}
        self._unconfigured: dict[str, int] = {}
        self._replacing = asyncio.Lock()
        self._links = LinkWatcher(self.network_changed)

    async def start(self) -> None:
        """Begin to send. Raises ConfigError when a target's address does not parse."""
        self._links.start()
        await self.replace_targets(self._wanted, self._redaction, self._budget)

    async def stop(self) -> None:
        """Claim nothing more, let sends finish within the grace period, settle every row that is held."""
        self._links.stop()
        lanes, self._lanes = [*self._lanes.values(), *self._retiring.values()], {}
        await asyncio.gather(*(lane.finish(self._grace_s) for lane in lanes))
        await asyncio.gather(*self._retiring)

    def wake(self) -> None:
        """Look at the outbox now: a row was queued or released."""
        for lane in self._lanes.values():
            lane.wake()

    def network_changed(self) -> None:
        """Probe at once: the device's own links, addresses or routes are new. A paused target stays paused."""
        for lane in self._lanes.values():
            lane.circuit.retry_now(blocked_too=False)
            lane.wake()

    async def drain(self) -> None:
        """Try everything now, whatever it waits for; paused targets too."""
        await asyncio.gather(*(lane.hasten() for lane in self._lanes.values()))
        await self._count_unconfigured()

    async def replace_targets(
        self, targets: Sequence[TargetSettings], redaction: RedactionSettings, budget: Budget | None = None
    ) -> None:
        """Take over a new configuration: nothing changes when a target in it is wrong (ConfigError).

        Rows that were accepted for another address, model or policy wait for a person.
        A target that is gone or changed finishes the sends that it has under way. One that is
        the same is tried anew: its key may have been mended.
        """
        async with self._replacing:
            await self._replace(targets, redaction, budget or self._budget)

    async def _replace(self, targets: Sequence[TargetSettings], redaction: RedactionSettings, budget: Budget) -> None:
        same = self._lanes.values() if redaction == self._redaction else ()
        kept = {lane.settings.name: lane for lane in same if lane.settings in targets}
        renewed = budget != self._budget
        made = {one.name: self._lane(one, redaction, budget) for one in targets if one.name not in kept}
        for lane in made.values():
            await self._hold_pending(lane.settings)
        # Only now, and at once: were storage to fail above, the old lanes would pass for lanes of the new redaction.
        self._redaction, self._budget = redaction, budget
        self._storage.outbox.charging = charging(budget.prices)
        self._storage.outbox.budgets = budget.ceilings
        for name, lane in self._lanes.items():
            if name not in kept:
                lane.retire()
                retiring = asyncio.create_task(lane.finish(lane.settings.timeout_s))
                self._retiring[retiring] = lane
                retiring.add_done_callback(self._retired)
        self._lanes = {settings.name: kept.get(settings.name) or made[settings.name] for settings in targets}
        for lane in kept.values():
            lane.circuit.retry_now(blocked_too=True)
            lane.budget = budget
            lane.wake()
        if renewed:  # rows that the old budgets held may go by the new ones
            await asyncio.gather(*(self._storage.outbox.hasten(t.name, now_ms=self._now_ms()) for t in targets))
        for lane in made.values():
            lane.start()
        await self._count_unconfigured()

    async def _hold_pending(self, target: TargetSettings) -> None:
        """Show at once what a new configuration holds back; each claim looks again."""
        held = await self._storage.outbox.hold_pending(
            target.name, fingerprint=target.fingerprint, only_released=target.egress not in SENT_AT_ONCE
        )
        if held:
            LOG.warning(
                "target %s: %d rows were accepted for another address, model or policy; they wait for a person",
                target.name,
                held,
            )

    @property
    def budget(self) -> Budget:
        """The prices and ceilings that hold now."""
        return self._budget

    def status(self) -> list[TargetStatus]:
        """Return the configured targets in their order, then the names that rows wait for in vain."""
        gone = [
            TargetStatus(name=name, state=UNCONFIGURED, reason="rows wait for a target of this name", waiting=rows)
            for name, rows in self._unconfigured.items()
        ]
        return [*(lane.status() for lane in self._lanes.values()), *gone]

    def _retired(self, retiring: asyncio.Task[None]) -> None:
        del self._retiring[retiring]
        self.wake()  # what it put back may be due for its successor

    def _lane(self, settings: TargetSettings, redaction: RedactionSettings, budget: Budget) -> Lane:
        lane = Lane(
            make_target(settings, self._connectivity, redaction, now_ms=self._now_ms, names=self.names),
            self._storage.outbox,
            Circuit(self._random),
            self._connectivity,
            self._queue,
            now_ms=self._now_ms,
            random=self._random,
            on_battery=self._on_battery,
            budget=budget,
            thrift=self._thrift,
            told_now=self.told_now,
        )
        lane.moved = self.wake
        return lane

    async def _count_unconfigured(self) -> None:
        """Find the names that rows wait for in vain, among the oldest: rows that never go become the oldest."""
        outbox = self._storage.outbox
        pending = (await outbox.counts())[EscalationState.PENDING]["rows"]
        names: set[str] = set()
        if pending > sum([await outbox.pending_for(name) for name in self._lanes]):
            oldest = await outbox.list(EscalationState.PENDING, limit=OLDEST_ROWS)
            names = {row.target for row in oldest if row.target is not None} - self._lanes.keys()
        self._unconfigured = {name: await outbox.pending_for(name) for name in sorted(names)}
