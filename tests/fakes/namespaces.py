"""Two network namespaces joined by one cable, without a default route: a closed network."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CLONE_NEWNET = 0x40000000
DEVICE_ADDRESS, TARGET_ADDRESS = "10.231.7.1", "10.231.7.2"
_libc = ctypes.CDLL(None, use_errno=True)


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


class Namespace:
    """A named network namespace and a thread that lives in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.link = "eth0"
        self._etc = Path("/etc/netns") / name  # laid over /etc by `ip netns exec`
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
        self.pool = ThreadPoolExecutor(1, initializer=self.enter)

    def enter(self) -> None:
        """Have the calling thread live here from now on."""
        handle = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        try:
            if _libc.setns(handle, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(handle)

    @property
    def prefix(self) -> tuple[str, ...]:
        """What to put before an argv to run it here."""
        return ("ip", "netns", "exec", self.name)

    def resolve_at(self, address: str) -> None:
        """Have programs that start here with ``prefix`` ask the name server of this address."""
        self._etc.mkdir(parents=True, exist_ok=True)
        (self._etc / "resolv.conf").write_text(f"nameserver {address}\n")

    def call(self, work: Callable[..., object], *args: object, **kwargs: object):
        """Run ``work`` on the thread that lives here."""
        return self.pool.submit(work, *args, **kwargs).result()

    def set_link(self, state: str) -> None:
        run("ip", "-n", self.name, "link", "set", self.link, state)

    def close(self) -> None:
        self.pool.shutdown()
        shutil.rmtree(self._etc, ignore_errors=True)
        run("ip", "netns", "del", self.name)


def available() -> str:
    """Return why namespaces cannot be had here, or nothing."""
    if shutil.which("ip") is None:
        return "there is no `ip` (install iproute2)"
    if os.geteuid() != 0:
        return "namespaces need root"
    name = f"probe-{uuid.uuid4().hex[:8]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"namespaces cannot be made here: {made.stderr.strip()}"
    run("ip", "netns", "del", name)
    return "" if Path("/run/netns").is_dir() else "/run/netns is missing"


@contextlib.contextmanager
def lone() -> Iterator[Namespace]:
    """Yield a namespace with nothing but loopback."""
    namespace = Namespace(f"lone-{uuid.uuid4().hex[:6]}")
    try:
        yield namespace
    finally:
        namespace.close()


@contextlib.contextmanager
def closed_network() -> Iterator[tuple[Namespace, Namespace]]:
    """Yield (device, target): one cable, two addresses, no way out."""
    tag = uuid.uuid4().hex[:6]
    device, target = Namespace(f"device-{tag}"), Namespace(f"target-{tag}")
    try:
        run(
            "ip", "link", "add", "eth0", "netns", device.name, "type", "veth",
            "peer", "name", "eth0", "netns", target.name,
        )  # fmt: skip
        for side, address in ((device, DEVICE_ADDRESS), (target, TARGET_ADDRESS)):
            run("ip", "-n", side.name, "addr", "add", f"{address}/30", "dev", "eth0")
            side.set_link("up")
        yield device, target
    finally:
        device.close()
        target.close()
