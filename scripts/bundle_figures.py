"""How quick and how quiet is the bundle? Measured on this machine, on data of its own in a scratch folder.

    python scripts/bundle_figures.py [dist/demo/outrider]      about a minute

* `outrider --version`, the middle of ten runs
* from the start of `outrider serve` to READY=1, as systemd is told it: on new data, then the middle of five on that data
* resident memory of daemon and worker after an answer
* how often a second the threads of both wake up while nobody asks: the kernel's count of voluntary switches, over 30 s

Exit code 65 when one of them is more than was promised. Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VERSION_S, READY_S, PARENT_MIB, WAKE_UPS = 0.3, 2.0, 60, 1.0
IDLE_S, SETTLED_S = 30.0, 5.0
QUESTION = {
    "model": "default",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 12,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the bundle's start and its idleness.")
    parser.add_argument("bundle", nargs="?", type=Path, default=Path("dist/demo/outrider"))
    program = parser.parse_args().bundle.resolve() / "outrider"
    if not program.exists():
        print(f"{program} is not there; make it first: make bundle", file=sys.stderr)
        return 1
    found = list(figures(program))
    for name, value, unit, most in found:
        print(f"{name}: {value:.2f} {unit}{'' if most is None else f' (at most {most:g})'}")
    return 65 if any(most is not None and value > most for _, value, _, most in found) else 0


def figures(program: Path) -> Iterator[tuple[str, float, str, float | None]]:
    """Yield (what, value, unit, the most that was promised)."""
    yield "--version", statistics.median(seconds([str(program), "--version"]) for _ in range(10)), "s", VERSION_S
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        with serving(program, data) as (_, took):
            yield "ready, new data", took, "s", READY_S
        starts = []
        for _ in range(5):
            with serving(program, data) as (_, took):
                starts.append(took)
        yield "ready", statistics.median(starts), "s", READY_S
        with serving(program, data) as (pid, _):
            answer(data)
            worker = children(pid)
            yield "daemon", resident(pid), "MiB resident", PARENT_MIB
            yield "its worker", sum(map(resident, worker)), "MiB resident", None
            time.sleep(SETTLED_S)
            before = sum(map(woken, (pid, *worker)))
            time.sleep(IDLE_S)
            yield "idle", (sum(map(woken, (pid, *worker))) - before) / IDLE_S, "wake-ups a second", WAKE_UPS


@contextmanager
def serving(program: Path, data: Path) -> Iterator[tuple[int, float]]:
    """Start the daemon; yield its pid and how long it took to tell that it is ready. Raises TimeoutError after a minute."""
    with tempfile.TemporaryDirectory() as place, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(f"{place}/notify")
        told.settimeout(60)
        environment = {"HOME": place, "PATH": os.environ["PATH"], "NOTIFY_SOCKET": f"{place}/notify"}
        began = time.monotonic()
        daemon = subprocess.Popen(
            [str(program), "--data-dir", str(data), "--set", "server.port=0", "serve"],
            env=environment, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            while b"READY=1" not in told.recv(4096):
                pass
            yield daemon.pid, time.monotonic() - began
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(60)


def answer(data: Path) -> None:
    url, token = json.loads((data / "daemon.json").read_text())["url"], (data / "token").read_text().strip()
    request = urllib.request.Request(
        f"{url.rstrip('/')}/v1/chat/completions",
        data=json.dumps(QUESTION).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        reply.read()


def seconds(command: list[str]) -> float:
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def resident(pid: int) -> float:
    """Return MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / (1 << 20)


def woken(pid: int) -> int:
    """Return how often the threads of a process gave the processor up by themselves: each time, something woke them."""
    texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return sum(
        int(found[1])
        for text in texts
        if (found := re.search(r"^voluntary_ctxt_switches:\s+(\d+)", text, re.MULTILINE))
    )


if __name__ == "__main__":
    sys.exit(main())
