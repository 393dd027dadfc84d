"""One instance per data directory, by an operating-system lock that ends with the process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from agent.errors import AlreadyRunning
from agent.storage.connection import from_os_error
from agent.telemetry import LOG


class InstanceLock:
    """Held from construction until ``release`` or the end of the process. Raises AlreadyRunning."""

    def __init__(self, data_dir: Path) -> None:
        path = data_dir / "lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise from_os_error(error, path) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise AlreadyRunning(f"process {owner} already uses {data_dir}; stop it or set another data_dir") from error
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            # It is held all the same: on a full disk only the note of who holds it is missing.
            LOG.warning("%s does not say who holds it: %s", path, error.strerror)
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Let another process in. Safe to call twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_held(data_dir: Path) -> bool:
    """Whether some process uses this data directory. For a moment the lock is shared, never taken."""
    try:
        descriptor = os.open(data_dir / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise from_os_error(error, data_dir / "lock") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
