"""Processes that open a database, work on it and die in the middle, many of them and quickly.

Run as a program it waits for lives to lead: for each line of JSON it forks, and the child works until it is killed.
What the child was acknowledged it writes, line by line, to a file outside the database's folder.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

REPO = Path(__file__).resolve().parents[2]
ASKERS, SENDERS = 3, 2


class Lives:
    """The parent of all lives, with ``environment`` added to its own."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            cwd=REPO,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def lead(self, work: str, data: Path, acknowledged: Path, *, now_ms: int, kill_after_s: float) -> list[list[str]]:
        """Let one child do ``work`` ("queue", "maintain", "migrate") until it is killed; return what it was acknowledged."""
        life = {"work": work, "data": str(data), "now_ms": now_ms, "kill_after_s": kill_after_s}
        acknowledged.write_bytes(b"")
        self.process.stdin.write(json.dumps(life | {"acknowledged": str(acknowledged)}) + "\n")
        self.process.stdin.flush()
        end = self.process.stdout.readline().split()
        assert end[0] in {"killed", "done"}, end
        return [line.split() for line in acknowledged.read_text().splitlines()]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()

    def __enter__(self) -> Lives:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def ask(storage, tell, now_ms: int) -> None:
    from fakes import storage_values as values

    while True:
        asked = values.request("x" * 700, now_ms=now_ms)
        await storage.journal.open(asked, now_ms=now_ms)
        tell("opened", asked.id)
        await storage.journal.settle(asked, values.generation(), values.UNSURE, values.queued(), now_ms=now_ms)
        tell("queued", asked.id)


async def send(storage, tell, now_ms: int) -> None:
    from agent.records import CloudAnswer

    while True:
        claimed = await storage.outbox.claim("cloud", now_ms=now_ms, lease_ms=60_000)
        if claimed is None:
            await asyncio.sleep(0)
            continue
        row, record = claimed
        await storage.outbox.begin_send(row, body_sha256="ab", body_bytes=100, now_ms=now_ms)
        tell("left", row.id)
        await asyncio.sleep(0)
        answer = CloudAnswer(text=f"late {record.id}", finish_reason="stop", model="big")
        await storage.outbox.succeed(row, answer, now_ms=now_ms)
        tell("resolved", record.id)


async def maintain(storage, now_ms: int) -> None:
    while True:
        await storage.maintain(now_ms)
        await asyncio.sleep(0.002)


async def live(life: dict, tell) -> None:
    from fakes import storage_values as values

    now_ms = life["now_ms"]
    storage = await values.open_storage(Path(life["data"]), values.QUEUE, values.KEEP, now_ms=now_ms)
    tell("ready", "-")
    also = [maintain(storage, now_ms)] if life["work"] == "maintain" else []
    await asyncio.gather(
        *(ask(storage, tell, now_ms) for _ in range(ASKERS)),
        *(send(storage, tell, now_ms) for _ in range(SENDERS)),
        *also,
    )


def work(life: dict) -> None:
    ears = os.open(life["acknowledged"], os.O_WRONLY | os.O_APPEND)

    def tell(*words: str) -> None:
        os.write(ears, (" ".join(words) + "\n").encode())

    if life["work"] == "migrate":
        from agent.storage import keys
        from agent.storage.connection import DATABASE_NAME
        from agent.storage.migrations import migrate

        data = Path(life["data"])
        migrate(data / DATABASE_NAME, keys.load(data, {}).material)
        tell("migrated", "-")
    else:
        asyncio.run(live(life, tell))


def main() -> None:
    import fakes.storage_values  # noqa: F401 - once, for all lives

    for line in sys.stdin:
        life = json.loads(line)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work(life)
                status = 0
            finally:
                os._exit(status)
        until = time.monotonic() + life["kill_after_s"]
        ended = (0, 0)
        while ended[0] == 0 and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.002))
            ended = os.waitpid(child, os.WNOHANG)
        if ended[0] == 0:
            os.kill(child, 9)
            ended = os.waitpid(child, 0)
        how = "killed" if os.WIFSIGNALED(ended[1]) else "done" if ended[1] == 0 else "failed"
        print(how, flush=True)


if __name__ == "__main__":
    main()
