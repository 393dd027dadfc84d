"""Sixteen clients on real weights that ask for everything and leave when they like; then nothing is left behind.

    OUTRIDER_TORTURE_S=60 python -m pytest tests/integration/test_engine_torture.py -s

lasts as long as it says; six seconds without.
"""

import asyncio
import collections
import contextlib
import json
import os
import random
import time

import pytest
from fakes import counting_worker, smollm2

from agent.engine.supervisor import EnginePool, WorkerState
from agent.settings import EngineSettings
from agent.structure import FormatKind, OutputFormat
from agent.types import FailureKind, Generation, InferenceRequest, Message, RequestKind, Sampling

SECONDS = float(os.environ.get("OUTRIDER_TORTURE_S", "6"))
CLIENTS = 16
PARALLEL = 6
LABELS = ("card arrival", "card not working", "exchange rate", "lost card", "request refund", "top up failed")
SCHEMA = json.dumps({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
FORMATS = (
    OutputFormat(kind=FormatKind.JSON_SCHEMA, source=SCHEMA),
    OutputFormat(kind=FormatKind.REGEX, source="[0-9]{3,9}"),
)
BEGINNING = (
    "You answer the questions of travellers about cities, in one short sentence, and never about anything else. "
)

pytestmark = [pytest.mark.model, pytest.mark.torture, pytest.mark.timeout(SECONDS * 2 + 240)]


def a_request(chance):
    """Something that a client could ask: short or long, free or bound, patient or not."""
    text = BEGINNING * chance.choice([0, 1, 1, 3]) + f"Tell me about city {chance.randrange(20)}."
    if chance.random() < 0.05:
        text = "word " * 600  # more than the context
    now = time.time_ns() // 1_000_000
    return InferenceRequest(
        id="r",
        model="m",
        messages=(Message("user", text),),
        sampling=Sampling(
            max_tokens=chance.choice([1, 8, 40, None]),
            temperature=chance.choice([0, 0.8]),
            seed=chance.randrange(99),
            n=chance.choice([1, 1, 1, 3]),
            logprobs=chance.random() < 0.3,
        ),
        response_format=chance.choice([None, None, *FORMATS]),
        received_at_ms=now,
        deadline_at_ms=None if chance.random() < 0.8 else now + chance.randrange(50, 4000),
    )


class Client:
    def __init__(self, pool, number, until):
        self.pool, self.until = pool, until
        self.chance = random.Random(number)
        self.outcomes = collections.Counter()

    async def run(self):
        while time.monotonic() < self.until:
            kind = "labels" if self.chance.random() < 0.15 else "generate"
            task = asyncio.create_task(self.score() if kind == "labels" else self.generate())
            if self.chance.random() < 0.5:
                await asyncio.wait([task], timeout=self.chance.expovariate(1.0))
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                self.outcomes[await task] += 1
                continue
            self.outcomes["left"] += 1

    async def generate(self):
        asked = a_request(self.chance)
        texts = collections.Counter()
        async with contextlib.aclosing(self.pool.generate(asked)) as events:
            async for event in events:
                if not isinstance(event, Generation):
                    texts[event.choice] += len(event.text)
                    if self.chance.random() < 0.02:
                        return "left in the middle"
                elif event.failure is None:
                    assert len(event.text) == texts[0]
                    return "answered"
                else:
                    if event.failure.kind is FailureKind.TIMEOUT:
                        assert asked.deadline_at_ms
                    return event.failure.kind.value
        raise AssertionError("it ended without an end")

    async def score(self):
        asked = InferenceRequest(
            id="r",
            model="m",
            kind=RequestKind.CLASSIFY,
            received_at_ms=0,
            messages=(Message("user", BEGINNING * self.chance.randrange(3) + "Where is my card?"),),
        )
        scores = await self.pool.score(asked, LABELS)
        return scores.failure.kind.value if scores.failure else "scored"


async def test_nothing_is_left_of_clients_that_come_and_go():
    settings = EngineSettings(parallel=PARALLEL, context_tokens=512, waiting_line=CLIENTS * 3, threads=1)
    pool = EnginePool(settings, {"m": smollm2.model_file("m")}.__getitem__, worker_command=counting_worker.COMMAND)
    await pool.start(["m"])
    while pool.status()["m"].state is not WorkerState.READY:
        await asyncio.sleep(0.05)
    pid, rss = pool.status()["m"].pid, pool.status()["m"].rss_bytes
    clients = [Client(pool, number, time.monotonic() + SECONDS) for number in range(CLIENTS)]
    await asyncio.gather(*(client.run() for client in clients))
    outcomes = sum((client.outcomes for client in clients), collections.Counter())
    worker = pool._models["m"]._worker
    async with asyncio.timeout(120):
        while worker._inboxes or worker._overdue:  # what was cancelled is confirmed
            await asyncio.sleep(0.02)
    status = pool.status()["m"]
    assert (status.pid, status.crashes, status.active, status.waiting) == (pid, 0, 0, 0)
    held = json.loads(worker._stderr.decode().strip().splitlines()[-1])
    print(f"\n{SECONDS:g} s, {CLIENTS} clients: {dict(outcomes)}; held at the end: {held}; ", end="")
    print(f"worker {rss >> 20} -> {status.rss_bytes >> 20} MiB")
    assert set(held.values()) == {0}
    assert outcomes["answered"]
    assert outcomes["left"] + outcomes["left in the middle"]
    assert set(outcomes) <= {"answered", "scored", "left", "left in the middle", "timeout", "context_overflow"}
    await pool.stop(5)
