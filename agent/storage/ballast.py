"""Space set aside for the moment when the disk is full.

Even a DELETE needs space then. The ballast is freed so that answers under way can be
stored and rows deleted; new requests are refused until it is back.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from agent.telemetry import LOG


class Ballast:
    """A file of ``size`` bytes that can be given back to the disk. ``size`` 0 switches it off."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self.size = size
        self.held = False

    def hold(self) -> bool:
        """Take the space if it is not held and twice as much is free. Returns whether it is held (or off)."""
        if self.held or not self.size:
            return True
        try:
            if self._path.exists() and self._path.stat().st_size == self.size:
                self.held = True
            elif shutil.disk_usage(self._path.parent).free >= 2 * self.size:
                self._allocate()
                self.held = True
        except OSError as error:
            LOG.warning("no space could be set aside in %s: %s", self._path, error.strerror)
            self._path.unlink(missing_ok=True)
        return self.held

    def release(self) -> bool:
        """Give the space back. Returns whether there was any to give."""
        if not self.held:
            return False
        self._path.unlink(missing_ok=True)
        self.held = False
        LOG.warning("the disk is full: reserved space is released, new requests are refused until some is free")
        return True

    def _allocate(self) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, self.size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
