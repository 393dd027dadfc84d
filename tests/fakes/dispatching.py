"""Dispatchers over a real outbox, rows for them, and waiting for what becomes of both."""

import asyncio
import contextlib
import time
from random import Random

import msgspec
from fakes.storage_values import enqueue, queued

from agent.escalation.dispatcher import Dispatcher
from agent.records import RequestState
from agent.settings import ConnectivitySettings, QueueSettings, TargetSettings
from agent.text_settings import RedactionSettings
from agent.types import EgressPolicy

CONNECTIVITY = ConnectivitySettings(connect_timeout_s=1.0, probe_cap_s=1.0)
QUEUE = QueueSettings(ballast_bytes=0)


class NoWait(Random):
    """Draws the shortest wait, so that no test waits for a backoff."""

    def uniform(self, a, b):
        return a


class LongWait(Random):
    """Draws the longest wait: what was put off stays put off."""

    def uniform(self, a, b):
        return b


def now_ms():
    return time.time_ns() // 1_000_000


def target(cloud, name="cloud", **fields):
    values = {"name": name, "base_url": cloud.base_url, "model": "big", "egress": EgressPolicy.ALLOW}
    return TargetSettings(**{**values, **fields})


def make(storage, *targets, random=None, connectivity=CONNECTIVITY, grace_s=5.0, on_battery=lambda: False, **options):
    return Dispatcher(
        storage,
        targets,
        connectivity,
        QUEUE,
        RedactionSettings(),
        now_ms=now_ms,
        random=random or NoWait(),
        on_battery=on_battery,
        grace_s=grace_s,
        **options,
    )


@contextlib.asynccontextmanager
async def running(*arguments, **options):
    dispatcher = make(*arguments, **options)
    await dispatcher.start()
    try:
        yield dispatcher
    finally:
        await dispatcher.stop()


async def queue_row(storage, cloud, text="what is the capital of Vanuatu?", decision=None, **fields):
    decision = decision or queued()
    if decision.target is not None:
        decision = msgspec.structs.replace(decision, target_fingerprint=target(cloud).fingerprint)
    return await enqueue(storage, decision, now_ms=now_ms(), text=text, **fields)


async def ended(storage, record):
    """Wait until the request is no longer queued; return its record."""
    async for latest in storage.journal.watch(record.id):
        if latest.state is not RequestState.QUEUED:
            return latest
    return latest


async def row_until(storage, record, holds):
    """Wait until the outbox row is as asked; return it."""
    while not holds(row := await storage.outbox.get(record.id)):
        await asyncio.sleep(0.01)
    return row


async def status_until(dispatcher, state):
    while dispatcher.status()[0].state != state:
        await asyncio.sleep(0.01)
    return dispatcher.status()[0]
