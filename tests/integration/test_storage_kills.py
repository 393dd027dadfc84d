"""kill -9 of a process that opens, settles, claims, sends and records: nothing acknowledged is lost.

The child prints a line after each await returned: that is an acknowledgement.
"""

import asyncio
import random
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

from fakes import storage_values as values
from fakes.storage_values import NOW

KILLS = 15
REPO = Path(__file__).resolve().parents[2]

CHILD = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    sys.path.insert(0, "tests")
    from fakes import storage_values as values
    from agent.storage import open_storage
    from agent.records import CloudAnswer

    NOW = int(sys.argv[2])

    def tell(*words):
        print(*words, flush=True)

    async def ask(storage, stop):
        while not stop.is_set():
            asked = values.request(now_ms=NOW)
            await storage.journal.open(asked, now_ms=NOW)
            tell("opened", asked.id)
            await storage.journal.settle(asked, values.generation(), values.UNSURE, values.queued(), now_ms=NOW)
            tell("queued", asked.id)

    async def send(storage, stop):
        while not stop.is_set():
            claimed = await storage.outbox.claim("cloud", now_ms=NOW, lease_ms=60_000)
            if claimed is None:
                await asyncio.sleep(0)
                continue
            row, record = claimed
            await storage.outbox.begin_send(row, body_sha256="ab", body_bytes=100, now_ms=NOW)
            tell("left", row.id)
            await asyncio.sleep(0)
            answer = CloudAnswer(text=f"late {record.id}", finish_reason="stop", model="big")
            await storage.outbox.succeed(row, answer, now_ms=NOW)
            tell("resolved", record.id)

    async def main():
        storage = await open_storage(Path(sys.argv[1]), values.QUEUE, values.KEEP, now_ms=NOW)
        assert not (await storage.outbox.counts())["leased"]["rows"]
        stop = asyncio.Event()
        tell("ready")
        await asyncio.gather(*(ask(storage, stop) for _ in range(3)), *(send(storage, stop) for _ in range(2)))

    asyncio.run(main())
""")


def run_until_killed(data, chance, now_ms):
    """Run the child, kill it a random number of acknowledgements later, and return what it acknowledged."""
    command = [sys.executable, "-c", CHILD, str(data), str(now_ms)]
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "ready\n"
        kill = threading.Timer(chance.uniform(0.005, 0.15), child.kill)
        kill.start()
        lines = child.stdout.read().split("\n")
    kill.join()
    assert child.returncode == -signal.SIGKILL
    return [line.split() for line in lines[:-1]]  # the last one may be cut


async def look(data, now_ms):
    storage = await values.open_storage(data, values.QUEUE, values.KEEP, now_ms=now_ms)
    try:
        records = {}
        for row in await storage.outbox.list(limit=-1):
            records[row.request_id] = await storage.journal.get(row.request_id)
        running = {request.id for request, _ in await storage.journal.running(100_000)}
        logged = await storage.egress_log.list(limit=-1)
        assert await storage.egress_log.verify() is None
        check = await storage.db.read(lambda connection: connection.execute("PRAGMA quick_check").fetchone()[0])
        assert check == "ok"
        return records, running, logged
    finally:
        await storage.close()


def test_nothing_acknowledged_is_lost(tmp_path):
    chance = random.Random(20_24)
    data = values.prepared_dir(tmp_path)
    said = {"opened": set(), "queued": set(), "resolved": set(), "left": []}
    for kill in range(KILLS):
        for word, some_id in run_until_killed(data, chance, NOW + kill):
            said[word].append(some_id) if word == "left" else said[word].add(some_id)
    records, running, logged = asyncio.run(look(data, NOW + KILLS))
    assert len(said["queued"]) > KILLS
    assert len(said["resolved"]) > 0
    assert said["opened"] <= records.keys() | running
    assert said["queued"] <= records.keys()
    for request_id in said["resolved"]:
        assert records[request_id].state == "resolved"
        assert records[request_id].cloud_answer.text == f"late {request_id}"
    for record in records.values():
        assert (record.state, record.escalation.state) in {
            ("queued", "pending"), ("resolved", "succeeded"), ("unresolved", "dead"),
        }  # fmt: skip
        assert record.generation is not None
    # Every byte that left is logged, and each resolved request has exactly one success.
    sent = [row.escalation_id for row in logged]
    for escalation_id in said["left"]:
        assert sent.count(escalation_id) >= said["left"].count(escalation_id)
    successes = [row.request_id for row in logged if row.outcome == "succeeded"]
    assert sorted(successes) == sorted(record.id for record in records.values() if record.state == "resolved")
    assert len([row for row in logged if row.outcome == "unknown"]) <= KILLS * 2
