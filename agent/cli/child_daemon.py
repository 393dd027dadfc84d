"""A daemon as the child of a command: started, waited for, stopped with the block."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx2

from agent.cli.client import DaemonAddress, find_daemon
from agent.errors import DaemonUnreachable

STOP_WITHIN_S = 60.0
LOOK_EVERY_S = 0.02


@contextlib.contextmanager
def running(command: Sequence[str], log: Path, environ: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a daemon that writes to ``log``. At the end it is asked to stop, and killed if it does not."""
    with log.open("ab") as writer:
        daemon = subprocess.Popen([*command], stdin=subprocess.DEVNULL, stdout=writer, stderr=writer, env=dict(environ))
    try:
        yield daemon
    finally:
        daemon.terminate()
        try:
            daemon.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def until_healthy(data_path: Path, daemon: subprocess.Popen[bytes] | None, within_s: float) -> DaemonAddress:
    """Wait until the daemon of a data directory answers; ``daemon`` where it is a child. Raises DaemonUnreachable.

    Its certificate is not looked at: its lock says that it is the one, and no token is sent.
    """
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if daemon is not None and daemon.poll() is not None:
            raise DaemonUnreachable(f"it ended with {daemon.returncode}")
        address = find_daemon(data_path)
        if address is not None:
            with contextlib.suppress(httpx2.HTTPError):
                asked = httpx2.get(f"{address.url}/healthz", trust_env=False, timeout=5, verify=False)
                if asked.status_code == 200:
                    return address
        time.sleep(LOOK_EVERY_S)
    raise DaemonUnreachable(f"not ready after {within_s:.0f} s")


def last_line(log: Path) -> str:
    """Return the last line that a daemon wrote, empty where it wrote none."""
    return (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]
