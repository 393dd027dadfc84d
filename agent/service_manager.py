"""What the service manager that started this daemon is told: ready, still alive, stopping.

The protocol is systemd's, sd_notify(3): one datagram of ``NAME=value`` lines to the socket that
``NOTIFY_SOCKET`` names. Without that variable nothing is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Mapping


def tell(text: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Send lines like ``READY=1``. Returns whether somebody was there to be told; never raises."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # a name in the kernel's own space
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect(address)
            sender.send(text.encode())
    except OSError:
        return False
    return True


def watchdog_interval_s(environ: Mapping[str, str] = os.environ) -> float | None:
    """Return how often to say that the event loop turns: half of what the manager waits; None when it does not wait."""
    own = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    given = environ.get("WATCHDOG_USEC", "")
    return int(given) / 2e6 if own and given.isdecimal() and int(given) > 0 else None


@contextlib.asynccontextmanager
async def announced(status: str) -> AsyncIterator[None]:
    """Tell the manager that the daemon is ready, then that it lives, and at the end that it stops."""
    tell(f"READY=1\nSTATUS={status}\nMAINPID={os.getpid()}")
    interval = watchdog_interval_s()
    beat = asyncio.create_task(_beat(interval)) if interval else None
    try:
        yield
    finally:
        tell("STOPPING=1")
        if beat is not None:
            beat.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await beat


async def _beat(interval_s: float) -> None:
    # From the event loop itself: where that hangs, the manager hears nothing and starts the daemon anew.
    while True:
        tell("WATCHDOG=1")
        await asyncio.sleep(interval_s)
