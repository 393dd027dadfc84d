"""A clock that is set while the daemon runs: nothing is sent twice, expires or is forgotten by that alone."""

import asyncio

import pytest
from fakes import storage_values as values
from fakes.storage_values import DAY, NOW

from agent.records import CloudAnswer
from agent.storage.clock import JUMP_MS, uptime_ms
from agent.types import EgressPolicy

HOUR = 3_600_000
YEAR = 365 * DAY
ANSWER = CloudAnswer(text="late", finish_reason="stop", model="big")
APPROVE = values.queued(egress=EgressPolicy.APPROVE)


class Device:
    """A wall clock and the time that really passes."""

    def __init__(self):
        self.now_ms, self.up_ms = NOW, 5_000

    def wait(self, span_ms):
        self.now_ms += span_ms
        self.up_ms += span_ms

    def set_by(self, jump_ms):
        self.now_ms += jump_ms


@pytest.fixture
def device():
    return Device()


@pytest.fixture
async def storage(tmp_path, device):
    opened = await values.open_storage(
        values.prepared_dir(tmp_path), values.QUEUE, values.KEEP, now_ms=NOW, uptime=lambda: device.up_ms
    )
    yield opened
    await opened.close()


async def sending(storage, device):
    row, _ = await storage.outbox.claim("cloud", now_ms=device.now_ms, lease_ms=600_000)
    await storage.outbox.begin_send(row, body_sha256="ab", body_bytes=9, now_ms=device.now_ms)
    return row


@pytest.mark.parametrize("jump_ms", [HOUR, 5 * YEAR, -HOUR, -5 * YEAR])
async def test_a_send_under_way_keeps_its_lease(storage, device, jump_ms):
    await values.enqueue(storage)
    row = await sending(storage, device)
    device.wait(1000)
    device.set_by(jump_ms)
    await storage.maintain(device.now_ms)
    await storage.outbox.succeed(row, ANSWER, now_ms=device.now_ms)


@pytest.mark.parametrize("jump_ms", [HOUR, 5 * YEAR, -5 * YEAR])
async def test_a_lease_still_ends_in_its_own_time(storage, device, jump_ms):
    await values.enqueue(storage)
    row = await sending(storage, device)
    device.set_by(jump_ms)
    await storage.maintain(device.now_ms)
    device.wait(599_999)
    await storage.maintain(device.now_ms)
    assert (await storage.outbox.get(row.id)).state == "leased"
    device.wait(1)
    await storage.maintain(device.now_ms)
    assert (await storage.outbox.get(row.id)).attempts == 1


@pytest.mark.parametrize("jump_ms", [5 * YEAR, -5 * YEAR])
async def test_rows_expire_by_the_time_that_has_passed(storage, device, jump_ms):
    ids = [(await values.enqueue(storage, decision)).id for decision in (values.queued(), APPROVE)]
    device.wait(DAY)
    await storage.maintain(device.now_ms)
    device.set_by(jump_ms)
    assert await storage.outbox.expire(device.now_ms) == 0
    device.wait(6 * DAY - 1)
    await storage.maintain(device.now_ms)
    assert [(await storage.outbox.get(some_id)).state for some_id in ids] == ["pending", "awaiting_approval"]
    device.wait(1)
    await storage.maintain(device.now_ms)
    assert [(await storage.outbox.get(some_id)).state for some_id in ids] == ["expired", "expired"]


async def test_rows_that_back_off_are_not_put_out_of_reach(storage, device):
    await values.enqueue(storage)
    row = await sending(storage, device)
    at_ms = device.now_ms + HOUR
    await storage.outbox.retry(row, available_at_ms=at_ms, reason="500", left=True, now_ms=device.now_ms)
    device.set_by(-5 * YEAR)
    await storage.maintain(device.now_ms)
    assert (await sending(storage, device)).attempts == 1


async def test_a_row_stamped_by_a_right_clock_does_not_live_on_when_a_wrong_one_is_set_right(tmp_path, device):
    data = values.prepared_dir(tmp_path)
    before = await values.open_storage(data, values.QUEUE, values.KEEP, now_ms=NOW)
    record = await values.enqueue(before)
    await before.close()
    device.set_by(-50 * YEAR)  # a boot without a battery-backed clock
    storage = await values.open_storage(
        data, values.QUEUE, values.KEEP, now_ms=device.now_ms, uptime=lambda: device.up_ms
    )
    device.set_by(50 * YEAR)
    await storage.maintain(device.now_ms)
    row = await storage.outbox.get(record.id)
    assert (row.state, row.expires_at_ms) == ("pending", device.now_ms + 7 * DAY)
    await storage.close()


async def test_texts_stay_as_long_as_they_should(storage, device):
    record = await values.enqueue(storage, values.ANSWERED)
    device.set_by(30 * DAY)
    device.wait(DAY - 1)
    await storage.maintain(device.now_ms)
    assert (await storage.journal.get(record.id)).request is not None
    device.wait(1)
    await storage.maintain(device.now_ms)
    assert (await storage.journal.get(record.id)).request is None


async def test_two_who_look_at_once_move_it_once(storage, device):
    record = await values.enqueue(storage)
    device.set_by(DAY)
    await asyncio.gather(*(storage.outbox.expire(device.now_ms) for _ in range(4)))
    assert (await storage.outbox.get(record.id)).expires_at_ms == device.now_ms + 7 * DAY


async def test_a_small_step_is_time(storage, device):
    record = await values.enqueue(storage)
    device.set_by(JUMP_MS - 1)
    await storage.maintain(device.now_ms)
    assert (await storage.outbox.get(record.id)).expires_at_ms == NOW + 7 * DAY


def test_the_uptime_of_this_device_does_not_go_back():
    assert 0 < uptime_ms() <= uptime_ms()
