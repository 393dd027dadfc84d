"""The way to one target: when rows wait, probe; when it answers, claim, send, settle.

One task claims, one task per send settles. Neither is ever cancelled: a claim or a settle cut
in the middle would leave a row leased with nobody to own it. They are asked to end instead.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from random import Random

from agent.errors import CannotRedact, LeaseLost, StorageError
from agent.escalation.budget import NO_BUDGET, Budget
from agent.escalation.connectivity import Circuit, Reach
from agent.escalation.consent import (
    ToldNow,
    as_told,
    forbidden,
    images_need_person,
    needs_person,
    nothing_told,
    strictest,
)
from agent.escalation.handoff import most_output
from agent.escalation.personal_data import CannotRedactNow
from agent.escalation.settlement import settle
from agent.escalation.target import (
    Blocked,
    Delivered,
    Held,
    Offline,
    Online,
    Outcome,
    RateLimited,
    Rejected,
    Retry,
    Target,
)
from agent.escalation.target_status import TargetStatus
from agent.escalation.thrift import URGENT, Thrift
from agent.records import Escalation, RequestRecord
from agent.settings import ConnectivitySettings, QueueSettings, TargetSettings
from agent.storage.outbox import Outbox
from agent.storage.outbox_reader import LOWEST_PRIORITY
from agent.storage.spending import OverBudget
from agent.telemetry import LOG, METRICS, log_fault
from agent.token_estimate import UNKNOWN_ANSWER_TOKENS
from agent.types import EgressPolicy

OUT_OF_REACH = frozenset({Reach.OFFLINE, Reach.PORTAL, Reach.BLOCKED})
STORAGE_AGAIN_S = 5.0
FAULT_AGAIN_S = 30.0
RECHECK_S = 60.0  # longest sleep: a wake that was missed, or a clock that was set, costs no more
LEASE_MARGIN_S = 60.0  # a lease outlives the longest send by this much


class Lane:
    """Sends the rows of one target. Made and used on one event loop."""

    def __init__(
        self,
        target: Target,
        outbox: Outbox,
        circuit: Circuit,
        connectivity: ConnectivitySettings,
        queue: QueueSettings,
        *,
        now_ms: Callable[[], int],
        random: Random,
        on_battery: Callable[[], bool],
        thrift: Thrift,
        budget: Budget = NO_BUDGET,
        told_now: ToldNow = nothing_told,
    ) -> None:
        self.circuit = circuit
        self._target = target
        self._outbox = outbox
        self._connectivity = connectivity
        self._queue = queue
        self._now_ms = now_ms
        self._random = random
        self._on_battery = on_battery
        self._told_now = told_now
        self.budget = budget
        self.moved: Callable[[], None] = lambda: None  # told when rows went on to another target
        self._thrift = thrift
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._claiming: asyncio.Task[None] | None = None
        self._leasing = False  # a row is being taken for the next send
        self._sends: set[asyncio.Task[None]] = set()
        self._next_start_s = 0.0
        self._last_success_ms: int | None = None
        self._outage: tuple[int, int | None] | None = None
        self._thrifty = ""  # why rows wait that are not urgent

    @property
    def settings(self) -> TargetSettings:
        return self._target.settings

    def start(self) -> None:
        """Begin to watch the outbox."""
        self._claiming = asyncio.create_task(self._run(), name=f"escalation {self.settings.name}")

    def wake(self) -> None:
        """Look at the outbox now."""
        self._wake.set()

    def retire(self) -> None:
        """Claim nothing more, and begin no send."""
        self._stopping.set()
        self._wake.set()

    async def finish(self, grace_s: float) -> None:
        """Retire; give sends ``grace_s`` to end, then let their deadlines pass. Every row is settled."""
        self.retire()
        tasks = {*self._sends, *([self._claiming] if self._claiming else [])}
        if tasks:
            await asyncio.wait(tasks, timeout=grace_s)
        while tasks := {task for task in (*self._sends, self._claiming) if task and not task.done()}:
            self._target.give_up()
            await asyncio.wait(tasks, timeout=0.1)
        await self._target.close()

    async def hasten(self) -> None:
        """Forget every wait: of the target, and of rows that back off."""
        self.circuit.retry_now(blocked_too=True)
        self._next_start_s = 0.0
        await self._outbox.hasten(self.settings.name, now_ms=self._now_ms())
        self.wake()

    def status(self) -> TargetStatus:
        """Return what is known of the target."""
        if self.settings.egress is EgressPolicy.NEVER:
            return TargetStatus(name=self.settings.name, state=Reach.BLOCKED, reason='its egress is "never"')
        now_ms, now_s = self._now_ms(), _monotonic_s()
        probe_in_s, hold_s = self.circuit.probe_in_s(now_s), self.circuit.hold_s(now_s)
        lost = self.circuit.reach not in {Reach.ONLINE, Reach.UNKNOWN}
        return TargetStatus(
            name=self.settings.name,
            state=self.circuit.reach,
            reason=self.circuit.reason or self._thrifty,
            next_probe_ms=now_ms + round(probe_in_s * 1000) if lost and probe_in_s is not None else None,
            held_until_ms=now_ms + round(hold_s * 1000) if hold_s > 0 else None,
            last_success_ms=self._last_success_ms,
            outage_from_ms=self._outage[0] if self._outage else None,
            outage_until_ms=self._outage[1] if self._outage else None,
            in_flight=len(self._sends) + self._leasing,
        )

    # --- claiming ---------------------------------------------------------------------

    async def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()  # before the look: a wake that comes during it is kept
            try:
                wait_s = await self._step()
            except StorageError as error:
                LOG.error("target %s: the outbox cannot be read: %s", self.settings.name, error)
                wait_s = STORAGE_AGAIN_S
            except Exception:
                log_fault("target %s: a fault in claiming; it goes on", self.settings.name)
                wait_s = FAULT_AGAIN_S
            if wait_s > 0:
                await self._sleep(self._wake, wait_s)

    async def _step(self) -> float:
        """Do the next thing that is due. Returns the seconds until there may be another one."""
        settings, now_ms, now_s = self.settings, self._now_ms(), _monotonic_s()
        if settings.egress is EgressPolicy.NEVER or len(self._sends) >= self.circuit.window(settings.concurrency):
            return RECHECK_S
        if (hold_s := max(self.circuit.hold_s(now_s), self._next_start_s - now_s)) > 0:
            return hold_s
        self._thrifty = await self._thrift.reason()
        least = URGENT if self._thrifty else LOWEST_PRIORITY
        due_ms = await self._outbox.next_available_ms(settings.name, now_ms, least=least)
        if due_ms is None:
            return RECHECK_S
        if due_ms > now_ms:
            return (due_ms - now_ms) / 1000
        probe_in_s = self.circuit.probe_in_s(now_s)
        if probe_in_s is None:
            return await self._claim(now_ms, least)
        if self.circuit.reach in OUT_OF_REACH:
            await self._pass_on(now_ms)
        if probe_in_s > 0:
            return probe_in_s
        await self._probe()
        return 0.0

    async def _pass_on(self, now_ms: int) -> None:
        """Put rows that have waited long enough to the next target of their rule."""
        waited_ms = round(self.settings.failover_s * 1000)
        why = f"{self.circuit.reach}, {self.circuit.reason}"
        moved = await self._outbox.pass_on(self.settings.name, why, before_ms=now_ms - waited_ms, now_ms=now_ms)
        if moved:
            LOG.warning("target %s is %s: %d rows go to the next target of their rule", self.settings.name, why, moved)
            self.moved()

    async def _claim(self, now_ms: int, least: int) -> float:
        lease_s = max(self._queue.lease_s, self.settings.timeout_s + LEASE_MARGIN_S)
        passed_on, self._leasing = self._outbox.passed_on, True
        try:
            claimed = await self._outbox.claim(
                self.settings.name, now_ms=now_ms, lease_ms=round(lease_s * 1000), least=least
            )
        finally:
            self._leasing = False  # nothing is awaited from here to the send that counts instead
        if self._outbox.passed_on != passed_on:
            self.moved()
        if claimed is None:
            # What is due and cannot be claimed has outlived its time.
            return 0.0 if await self._outbox.expire(now_ms) else 1.0
        self._next_start_s = _monotonic_s() + self.settings.min_interval_s
        self._pace(claimed[0].bytes)  # about what will leave: another may be claimed before that is known
        send = asyncio.create_task(self._deliver(*claimed), name=f"escalation {claimed[0].id}")
        self._sends.add(send)
        send.add_done_callback(self._ended)
        return 0.0

    def _ended(self, send: asyncio.Task[None]) -> None:
        self._sends.discard(send)
        self._wake.set()

    async def _probe(self) -> None:
        outcome = await self._target.probe()
        was = self.circuit.reach
        match outcome:
            case Online():
                self.circuit.found()
                self._returned()
            case Offline():
                self._lost(outcome)
            case RateLimited():
                self.circuit.throttled(outcome.reason, _monotonic_s(), self._wait_s(outcome))
            case Blocked():
                self.circuit.blocked(outcome.reason, _monotonic_s())
        METRICS.count("probes", target=self.settings.name, outcome=_name(outcome))
        if self.circuit.reach is not was:
            LOG.info("target %s: %s %s", self.settings.name, self.circuit.reach, self.circuit.reason)

    # --- sending ----------------------------------------------------------------------

    async def _deliver(self, row: Escalation, record: RequestRecord) -> None:
        try:
            told = self._told_now(record)
            record = as_told(record, told)
            if reason := needs_person(row, self.settings, told) or images_need_person(record, row, self.settings):
                await self._outbox.hold(row, reason, now_ms=self._now_ms())
                LOG.info("escalation %s: waits for a person: %s", row.id, reason)
                return
            outcome = await self._attempt(row, record)
            if isinstance(outcome, OverBudget):
                METRICS.count("sends", target=self.settings.name, outcome="over_budget")
                LOG.info("escalation %s: put off: %s", row.id, outcome.reason)
                self.moved()
                return
            self._learn(outcome)
            await self._settle(row, outcome)
        except LeaseLost:
            LOG.info("escalation %s: no longer held (cancelled); what came of it is dropped", row.id)
        except StorageError as error:
            LOG.error("escalation %s: %s; its lease brings it back", row.id, error)
        except Exception:
            log_fault("escalation %s: a fault in sending; its lease brings it back", row.id)

    async def _attempt(self, row: Escalation, record: RequestRecord) -> Outcome | OverBudget:
        if reason := forbidden(record, row, self.settings):
            return Rejected(f"not sent: {reason}", left=False)
        try:
            outgoing = await asyncio.to_thread(self._target.outgoing, record, row)
        except CannotRedactNow as error:
            return Retry(f"not sent: {error}", left=False)
        except CannotRedact as error:
            return Rejected(f"not sent: {error}", left=False)
        # A token covers a byte at least, in the vocabularies in use: no body has more tokens than bytes.
        answer = most_output(record, row, self.settings.max_output_tokens)
        most = self.budget.amount(
            self.settings.name, len(outgoing.body), UNKNOWN_ANSWER_TOKENS if answer is None else answer
        )
        over = await self._outbox.begin_send(
            row,
            body_sha256=hashlib.sha256(outgoing.body).hexdigest(),
            body_bytes=len(outgoing.body),
            redactions=outgoing.kinds,
            policy=strictest(record, row, self.settings),
            most=most,
            now_ms=self._now_ms(),
        )
        if over is not None:
            return over
        self._pace(len(outgoing.body) - row.bytes)
        if self._stopping.is_set():  # the target may be another one by now
            return Offline("not sent: its target was stopped, changed or removed")
        return await self._target.send(row, record, outgoing)

    def _learn(self, outcome: Outcome) -> None:
        """Take from an outcome what it says of the target."""
        now_s = _monotonic_s()
        match outcome:
            case Offline():
                self._lost(outcome)
            case Blocked():
                self.circuit.blocked(outcome.reason, now_s)
                LOG.warning("target %s is paused: %s", self.settings.name, outcome.reason)
            case RateLimited():
                self.circuit.throttled(outcome.reason, now_s, self._wait_s(outcome))
            case Retry() if outcome.left:
                if outcome.silent:
                    self.circuit.doubted()
                self.circuit.troubled(now_s)
            case Delivered() | Held():
                self.circuit.replied(usable=True)
                self._returned()
                if isinstance(outcome, Delivered):
                    self._last_success_ms = self._now_ms()
            case Rejected() if outcome.left:
                self.circuit.replied(usable=False)

    async def _settle(self, row: Escalation, outcome: Outcome) -> None:
        """Store the outcome, again and again while storage fails: an answer may have been paid for."""
        METRICS.count("sends", target=self.settings.name, outcome=_name(outcome))
        LOG.info("escalation %s target=%s outcome=%s %s", row.id, self.settings.name, _name(outcome), _reason(outcome))
        while True:
            try:
                hold_s = self.circuit.hold_s(_monotonic_s())
                after = await settle(
                    self._outbox, row, outcome, now_ms=self._now_ms(), hold_s=hold_s, random=self._random
                )
                break
            except LeaseLost:
                raise
            except StorageError as error:
                if self._stopping.is_set():
                    raise
                LOG.error("escalation %s: its outcome is not stored yet: %s", row.id, error)
                await self._sleep(self._stopping, STORAGE_AGAIN_S)
        if after.target != row.target:
            LOG.info("escalation %s: goes on to target %s", row.id, after.target)
            self.moved()

    def _pace(self, body_bytes: int) -> None:
        """Let the next send begin when a line of ``bytes_per_s`` has carried this one."""
        if rate := self.settings.bytes_per_s:
            self._next_start_s = max(self._next_start_s, _monotonic_s()) + body_bytes / rate

    def _returned(self) -> None:
        if self._outage and self._outage[1] is None:
            self._outage = (self._outage[0], self._now_ms())

    def _lost(self, outcome: Offline) -> None:
        if self._outage is None or self._outage[1] is not None:
            self._outage = (self._now_ms(), None)
        on_battery = self._on_battery()
        cap_s = self._connectivity.probe_cap_battery_s if on_battery else self._connectivity.probe_cap_s
        self.circuit.lost(outcome.reason, _monotonic_s(), cap_s=cap_s, portal=outcome.portal)

    def _wait_s(self, outcome: RateLimited) -> float | None:
        return None if outcome.until_ms is None else max(0.0, (outcome.until_ms - self._now_ms()) / 1000)

    @staticmethod
    async def _sleep(until: asyncio.Event, wait_s: float) -> None:
        try:
            async with asyncio.timeout(min(wait_s, RECHECK_S)):
                await until.wait()
        except TimeoutError:
            return


def _monotonic_s() -> float:
    return asyncio.get_running_loop().time()


def _name(outcome: object) -> str:
    return type(outcome).__name__.lower()


def _reason(outcome: Outcome) -> str:
    return "" if isinstance(outcome, Delivered) else outcome.reason
