"""Clients of one storage process, each enqueuing as fast as it is acknowledged. Prints one line of JSON at the end."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]


async def client(storage, number: int, until: float, times: list[float], errors: list[str]) -> None:
    from fakes import storage_values as values
    from fakes.storage_values import NOW

    count = 0
    while time.monotonic() < until:
        asked = values.request(f"question {count} of client {number} " + "x" * 300)
        began = time.perf_counter()
        try:
            await storage.journal.open(asked, now_ms=NOW)
            await storage.journal.settle(asked, values.generation(), values.UNSURE, values.queued(), now_ms=NOW)
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
        times.append((time.perf_counter() - began) * 1000)
        count += 1


async def main(data: Path, clients: int, seconds: float) -> None:
    from fakes import storage_values as values
    from fakes.storage_values import NOW

    from agent.settings import QueueSettings

    queue = QueueSettings(max_rows=10_000_000, max_bytes=10**11)
    storage = await values.open_storage(data, queue, values.KEEP, now_ms=NOW)
    times: list[float] = []
    errors: list[str] = []
    began = time.monotonic()
    await asyncio.gather(*(client(storage, n, began + seconds, times, errors) for n in range(clients)))
    elapsed = time.monotonic() - began
    rows = (await storage.outbox.counts())["pending"]["rows"]
    await storage.close()
    print(json.dumps({"times": times, "errors": errors, "seconds": elapsed, "rows": rows}))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
