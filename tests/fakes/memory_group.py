"""A group of processes that the kernel lets have no more than so much memory: it kills one of them then."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


class MemoryGroup:
    """A control group of version 1 or 2. It ends when its processes have."""

    def __init__(self, most_bytes: int) -> None:
        """Raises OSError where groups cannot be made."""
        second = (_ROOT / "cgroup.controllers").is_file()
        if second:
            (_ROOT / "cgroup.subtree_control").write_text("+memory")
        self.path = (_ROOT if second else _ROOT / "memory") / f"outrider-test-{uuid.uuid4().hex[:8]}"
        self.path.mkdir()
        try:
            (self.path / ("memory.max" if second else "memory.limit_in_bytes")).write_text(str(most_bytes))
        except OSError:
            self.path.rmdir()
            raise
        self._told = self.path / ("memory.events" if second else "memory.oom_control")

    @property
    def prefix(self) -> tuple[str, ...]:
        """What to put before an argv to run it here."""
        return ("sh", "-c", f'echo $$ > {self.path}/cgroup.procs && exec "$@"', "sh")

    @property
    def kills(self) -> int:
        """How many processes the kernel has killed here."""
        told = dict(line.split() for line in self._told.read_text().splitlines())
        return int(told["oom_kill"])

    def close(self) -> None:
        until = time.monotonic() + 10
        while (self.path / "cgroup.procs").read_text().strip() and time.monotonic() < until:
            time.sleep(0.05)
        self.path.rmdir()


def available() -> str:
    """Return why groups cannot be had here, or nothing."""
    try:
        MemoryGroup(1 << 30).close()
    except OSError as error:
        return f"no control group can be made: {error}"
    return ""


@contextlib.contextmanager
def memory_group(most_bytes: int) -> Iterator[MemoryGroup]:
    group = MemoryGroup(most_bytes)
    try:
        yield group
    finally:
        group.close()
