"""A process whose disk fails at chosen calls. Reads lines "FIRST ERRNO COUNT" and answers each with one line of JSON.

For each line: a fresh data directory, the fault armed before it is opened, eight requests through the whole road
(open, settle, claim, begin, succeed), the fault gone, and the same road once more in the same process.
"""

from __future__ import annotations

import asyncio
import errno
import json
import shutil
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

ROUNDS = 8
FOREVER = 1 << 40


async def road(storage, number: int, said: dict) -> None:
    """Take one request from its acceptance to its late answer; note what was acknowledged."""
    from fakes import storage_values as values
    from fakes.storage_values import NOW

    from agent.records import CloudAnswer

    asked = values.request(f"question {number} " + "x" * 600)
    await storage.journal.open(asked, now_ms=NOW)
    said["opened"].append(asked.id)
    await storage.journal.settle(asked, values.generation(), values.UNSURE, values.queued(), now_ms=NOW)
    said["queued"].append(asked.id)
    claimed = await storage.outbox.claim("cloud", now_ms=NOW, lease_ms=60_000)
    if claimed is None:
        return
    row, record = claimed
    await storage.outbox.begin_send(row, body_sha256="ab", body_bytes=100, now_ms=NOW)
    said["left"].append(row.id)
    answer = CloudAnswer(text=f"late {record.id}", finish_reason="stop", model="big")
    await storage.outbox.succeed(row, answer, now_ms=NOW)
    said["resolved"].append(record.id)


async def attempt(faults, data: Path, first: int, error: int, count: int) -> dict:
    from fakes import storage_values as values
    from fakes.storage_values import NOW
    from test_r01_kills import Found, Said

    from agent.errors import OutriderError

    told = {"opened": [], "queued": [], "left": [], "resolved": []}
    errors: list[str] = []
    odd: list[str] = []
    said = Said()

    def note(caught: Exception) -> None:
        named = isinstance(caught, OutriderError) and "\n" not in str(caught)
        (errors if named else odd).append(f"{type(caught).__name__}: {caught}")

    faults.arm(first, error=error, count=count)
    storage = None
    try:
        storage = await values.open_storage(data, values.QUEUE, values.KEEP, now_ms=NOW)
    except Exception as caught:
        note(caught)
    if storage is not None:
        for number in range(ROUNDS):
            try:
                await road(storage, number, told)
            except Exception as caught:
                note(caught)
    failed = faults["failed"]
    faults.disarm()
    recovered = True
    try:
        if storage is None:
            storage = await values.open_storage(data, values.QUEUE, values.KEEP, now_ms=NOW)
        await road(storage, ROUNDS, told)
        await storage.maintain(NOW)
    except Exception as caught:
        recovered = False
        odd.append(f"afterwards: {type(caught).__name__}: {caught}")
    if storage is not None:
        await storage.close()
    said.opened, said.queued, said.resolved = (set(told[name]) for name in ("opened", "queued", "resolved"))
    said.left = told["left"]
    found = await Found.look(data, NOW + 1)
    return {
        "failed": failed,
        "errors": errors,
        "odd": odd,
        "recovered": recovered,
        "lost": [*found.lost(said), *found.crooked(), *found.unlogged(said)],
        "unacknowledged": len(found.records.keys() - said.queued),
        "check": found.check,
        "log": found.broken_log,
        "acknowledged": len(said.queued),
    }


def main() -> None:
    import os

    from fakes import storage_values as values
    from fakes.preload import Faults

    sys.path.append(str(Path(__file__).resolve().parents[1] / "torture"))
    folder = Path(os.environ["FAULTS_FOLDER"])
    faults = Faults.shared(Path(os.environ["FAULTS_CONTROL"]))
    for line in sys.stdin:
        first, error, count = line.split()
        data = values.prepared_dir(folder)
        answer = asyncio.run(
            attempt(faults, data, int(first), getattr(errno, error), FOREVER if count == "forever" else int(count))
        )
        print(json.dumps(answer), flush=True)
        shutil.rmtree(data)


if __name__ == "__main__":
    main()
