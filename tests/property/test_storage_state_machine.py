"""Random walks over the outbox against a model of it.

After every step: each row and request is in the model's state, the invariant between the
two holds, counters equal a count, and the egress log has exactly what left.
"""

import asyncio
import itertools
import shutil

import pytest
from fakes import storage_values as values
from fakes.outbox_model import OPEN, REQUEST_OF, Row, facts
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent import identifiers
from agent.errors import LeaseLost, QueueFull, WrongState
from agent.records import CloudAnswer, HoldReason
from agent.settings import QueueSettings
from agent.storage import journal as journal_module
from agent.storage import outbox as outbox_module
from agent.types import EgressPolicy

TARGETS = ("near", "far")
FINGERPRINTS = ("a1", "b2")
MAX_ATTEMPTS = 3
MAX_ROWS = 6
TTL_MS = 50_000
LEASE_MS = 4_000
QUEUE = QueueSettings(ballast_bytes=0, max_attempts=MAX_ATTEMPTS, max_rows=MAX_ROWS, ttl_s=TTL_MS // 1000)

SNOOZES = 3


class OutboxMachine(RuleBasedStateMachine):
    @initialize()
    def start(self):
        self.runner = asyncio.Runner()
        self.folder = values.fast_folder()
        self.data = values.prepared_dir(self.folder)
        self.now = values.NOW
        self.rows: dict[str, Row] = {}
        self.handles = []  # every claim ever made, stale ones too
        self.left = []
        self.snoozes_were, outbox_module.SNOOZES_PER_ATTEMPT = outbox_module.SNOOZES_PER_ATTEMPT, SNOOZES
        # Rows of one moment sort by the random part of their id: counted, so that a walk can be walked again.
        serial = itertools.count()
        self.uuid7_was, journal_module.uuid7 = (
            journal_module.uuid7,
            lambda now_ms: identifiers.uuid7(now_ms, next(serial).to_bytes(10, "big")),
        )
        self.open()

    def open(self):
        self.storage = self.run(values.open_storage(self.data, QUEUE, values.KEEP, now_ms=self.now))

    def run(self, work):
        return self.runner.run(work)

    def teardown(self):
        if hasattr(self, "runner"):
            self.run(self.storage.close())
            self.runner.close()
            outbox_module.SNOOZES_PER_ATTEMPT = self.snoozes_were
            journal_module.uuid7 = self.uuid7_was
            shutil.rmtree(self.folder)

    # --- steps ------------------------------------------------------------------------

    @rule(
        target_name=st.sampled_from([*TARGETS, None]),
        egress=st.sampled_from([EgressPolicy.ALLOW, EgressPolicy.APPROVE]),
        fingerprint=st.sampled_from(FINGERPRINTS),
    )
    def accept(self, target_name, egress, fingerprint):
        asked = values.request(now_ms=self.now)
        self.run(self.storage.journal.open(asked, now_ms=self.now))
        fingerprint = target_name and fingerprint
        decision = values.queued(target_name, egress, target_fingerprint=fingerprint)
        settle = self.storage.journal.settle(asked, values.generation(), values.UNSURE, decision, now_ms=self.now)
        if sum(row.state in OPEN for row in self.rows.values()) >= MAX_ROWS:
            with pytest.raises(QueueFull):
                self.run(settle)
            refuse = self.storage.journal.settle(
                asked, values.generation(), values.UNSURE, values.ANSWERED, now_ms=self.now
            )
            assert self.run(refuse).state == "answered"
            return
        record = self.run(settle)
        allowed = egress is EgressPolicy.ALLOW and target_name is not None
        self.rows[record.escalation.id] = Row(
            record.id,
            "pending" if allowed else "awaiting_approval",
            target_name,
            fingerprint,
            allowed,
            self.now + TTL_MS,
            self.now,
            self.now,
        )

    @rule(target_name=st.sampled_from(TARGETS))
    def claim(self, target_name):
        claimed = self.run(self.storage.outbox.claim(target_name, now_ms=self.now, lease_ms=LEASE_MS))
        due = sorted(
            (row.turn, row_id)
            for row_id, row in self.rows.items()
            if row.state == "pending" and row.target == target_name and row.available <= self.now < row.expires
        )
        if claimed is None:
            assert not due
            return
        row, record = claimed
        assert row.id == due[0][1]  # whose turn it is
        assert record.request is not None
        model = self.rows[row.id]
        assert model.allowed or model.released
        model.state, model.lease, model.lease_expires = "leased", row.lease, self.now + LEASE_MS
        assert row.lease not in {handle.lease for handle in self.handles}
        self.handles.append(row)

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def begin_send(self, data):
        handle = data.draw(st.sampled_from(self.handles))
        send = self.storage.outbox.begin_send(handle, body_sha256="aa", body_bytes=10, now_ms=self.now)
        model = self.rows.get(handle.id)
        if model is None or model.lease != handle.lease:
            with pytest.raises(LeaseLost):
                self.run(send)
        elif model.sending:
            with pytest.raises(WrongState):
                self.run(send)
        else:
            self.run(send)
            model.sending = True

    @precondition(lambda self: self.handles)
    @rule(
        data=st.data(),
        how=st.sampled_from(["succeed", "snooze", "retry", "reject", "hold"]),
        wait=st.integers(0, 8_000),
        left=st.booleans(),
        replied=st.booleans(),
    )
    def settle(self, data, how, wait, left, replied):
        handle = data.draw(st.sampled_from(self.handles))
        model = self.rows.get(handle.id)
        outbox, now, later = self.storage.outbox, self.now, self.now + wait
        left = (left or how == "succeed") and how != "hold"
        match how:
            case "succeed":
                answer = CloudAnswer(text="late", finish_reason="stop", model="big")
                step = outbox.succeed(handle, answer, now_ms=now)
            case "snooze":
                step = outbox.snooze(
                    handle, available_at_ms=later, reason="offline", left=left, now_ms=now, replied=replied
                )
            case "retry":
                step = outbox.retry(handle, available_at_ms=later, reason="500", left=left, now_ms=now)
            case "hold":
                step = outbox.hold(handle, HoldReason.TARGET_CHANGED, now_ms=now)
            case _:
                step = outbox.reject(handle, reason="400", left=left, now_ms=now)
        if model is None or model.lease != handle.lease:
            with pytest.raises(LeaseLost):
                self.run(step)
            return
        if left and not model.sending:
            with pytest.raises(WrongState):
                self.run(step)
            return
        self.run(step)
        if left:
            self.left.append(handle.id)
        model.lease, model.sending = None, False
        match how:
            case "succeed":
                model.state = "succeeded"
            case "snooze" if replied and model.snoozes + 1 == SNOOZES:
                self.count_attempt(model, later)
            case "snooze":
                model.state, model.available, model.turn = "pending", later, self.now
                model.snoozes += replied
            case "hold":
                self.model_hold(model)
            case "retry":
                self.count_attempt(model, later)
            case _:
                model.state = "dead"

    def count_attempt(self, model, available):
        model.attempts += 1
        model.state = "dead"
        if model.attempts < MAX_ATTEMPTS:
            model.state, model.available, model.turn, model.snoozes = "pending", available, self.now, 0

    def model_hold(self, model):
        model.state, model.allowed, model.released = "awaiting_approval", False, False

    def model_rescue(self, *, every):
        for row_id, row in self.rows.items():
            if row.state == "leased" and (every or row.lease_expires <= self.now):
                if row.sending:
                    self.left.append(row_id)
                row.lease, row.sending = None, False
                self.count_attempt(row, self.now)

    @rule(pause=st.integers(1, 20_000))
    def time_passes(self, pause):
        self.now += pause

    @rule()
    def maintain(self):
        self.run(self.storage.maintain(self.now))
        self.model_rescue(every=False)
        for row in self.rows.values():
            if row.state in {"awaiting_approval", "pending"} and row.expires <= self.now:
                row.state = "expired"

    @rule()
    def restart(self):
        self.run(self.storage.close())
        self.open()
        self.model_rescue(every=True)

    @rule(target_name=st.sampled_from(TARGETS), fingerprint=st.sampled_from(FINGERPRINTS), only_released=st.booleans())
    def configuration_changes(self, target_name, fingerprint, only_released):
        held = [
            row
            for row in self.rows.values()
            if row.state == "pending"
            and row.target == target_name
            and (row.fingerprint != fingerprint or (only_released and not row.released))
        ]
        hold = self.storage.outbox.hold_pending(target_name, fingerprint=fingerprint, only_released=only_released)
        assert self.run(hold) == len(held)
        for row in held:
            self.model_hold(row)

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), configured=st.sampled_from([None, {"near"}, {"near", "far"}]))
    def release_one(self, data, configured):
        row_id = data.draw(st.sampled_from(sorted(self.rows)))
        row = self.rows[row_id]
        stranded = configured is not None and row.state == "pending" and row.target not in configured
        may = (row.state == "awaiting_approval" or stranded) and row.expires > self.now
        release = self.storage.outbox.release(
            [row_id], target="near", fingerprint="a1", configured=configured, now_ms=self.now
        )
        assert self.run(release) == may
        if may:
            self.model_release(row, "near", "a1")

    def model_release(self, row, target_name, fingerprint):
        row.state, row.released, row.available = "pending", True, self.now
        row.target, row.fingerprint = target_name, fingerprint

    @rule(target_name=st.sampled_from(TARGETS))
    def release_all(self, target_name):
        waiting = [row for row in self.rows.values() if row.state == "awaiting_approval" and row.expires > self.now]
        release = self.storage.outbox.release(None, target=target_name, fingerprint="a1", now_ms=self.now)
        assert self.run(release) == len(waiting)
        for row in waiting:
            self.model_release(row, target_name, "a1")

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def cancel(self, data):
        row_id = data.draw(st.sampled_from(sorted(self.rows)))
        row = self.rows[row_id]
        cancel = self.storage.outbox.cancel(row_id, now_ms=self.now)
        if row.state not in OPEN:
            with pytest.raises(WrongState):
                self.run(cancel)
            return
        self.run(cancel)
        if row.sending:
            self.left.append(row_id)
        row.state, row.lease, row.sending = "cancelled", None, False

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), reason=st.sampled_from([None, HoldReason.TARGET_REMOVED]))
    def retry_by_hand(self, data, reason):
        row_id = data.draw(st.sampled_from(sorted(self.rows)))
        row = self.rows[row_id]
        again = self.storage.outbox.retry_by_hand(row_id, hold=lambda row: reason, now_ms=self.now)
        if row.state not in {"dead", "expired", "cancelled"}:
            with pytest.raises(WrongState):
                self.run(again)
        elif sum(other.state in OPEN for other in self.rows.values()) >= MAX_ROWS:
            with pytest.raises(QueueFull):
                self.run(again)
        else:
            self.run(again)
            if row.allowed or row.released:
                row.state = "pending"
                if reason is not None:
                    self.model_hold(row)
            else:
                row.state = "awaiting_approval"
            row.attempts, row.snoozes, row.available, row.expires = 0, 0, self.now, self.now + TTL_MS

    @rule(unfetched=st.booleans())
    def purge(self, unfetched):
        kept = OPEN if unfetched else {*OPEN, "succeeded"}  # nothing here fetches late answers
        ended = [row_id for row_id, row in self.rows.items() if row.state not in kept]
        assert self.run(self.storage.outbox.purge(now_ms=self.now, unfetched=unfetched)) == len(ended)
        for row_id in ended:
            del self.rows[row_id]

    # --- what must hold ---------------------------------------------------------------

    @invariant()
    def agrees_with_the_model(self):
        if not hasattr(self, "storage"):
            return
        found = {row.id: row for row in self.run(self.storage.outbox.list(limit=-1))}
        assert {row_id: facts(row, row.target_fingerprint) for row_id, row in found.items()} == {
            row_id: facts(row, row.fingerprint) for row_id, row in self.rows.items()
        }

    @invariant()
    def request_and_row_agree(self):
        if not hasattr(self, "storage"):
            return
        for row_id, row in self.rows.items():
            record = self.run(self.storage.journal.get(row.request_id))
            assert record.escalation.id == row_id
            assert record.state == REQUEST_OF[row.state]
            assert (record.cloud_answer is not None) == (row.state == "succeeded")
            assert record.generation is not None

    @invariant()
    def counters_are_true(self):
        if not hasattr(self, "storage"):
            return

        def count(connection):
            return {
                table: {
                    state: (rows, size)
                    for state, rows, size in connection.execute(
                        f"SELECT state, count(*), {size} FROM {table} GROUP BY state"
                    ).fetchall()
                }
                for table, size in (("escalations", "sum(bytes)"), ("requests", "0"))
            }

        truth = self.run(self.storage.db.read(count))
        for state, tally in self.run(self.storage.outbox.counts()).items():
            assert (tally["rows"], tally["bytes"]) == truth["escalations"].get(state, (0, 0))
        for state, rows in self.run(self.storage.journal.counts()).items():
            assert rows == truth["requests"].get(state, (0, 0))[0]

    @invariant()
    def what_left_is_logged(self):
        if not hasattr(self, "storage"):
            return
        logged = self.run(self.storage.egress_log.list(limit=1000))
        assert [row.escalation_id for row in sorted(logged, key=lambda row: row.id)] == self.left
        assert self.run(self.storage.egress_log.verify()) is None


OutboxMachine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestOutbox = OutboxMachine.TestCase
