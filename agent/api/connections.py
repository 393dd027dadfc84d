"""How many connections the server takes at once: what the system's limit on open files leaves.

Without a bound a crowd takes all files of the process, and requests that are under way fail
because a database or a pipe cannot be opened. Where the limit is reached, later callers wait
in the system's own line.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from typing import Any

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

MOST_FILES = 65_536
KEPT_FILES = 64  # for databases, pipes of workers, targets, and what is open for a moment

SAID_S = 0.5


def allow_many_files() -> None:
    """Raise this process's limit on open files as far as the system lets it."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # what is allowed already has to do
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class BoundedListener(socket.socket):
    """A listening socket that leaves KEPT_FILES files to the rest of the process."""

    _full_at = -SAID_S

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept as usual, or raise OSError as the system does when there is no file left.

        The event loop then logs that and looks again after a second.
        """
        if time.monotonic() - self._full_at < SAID_S:
            raise BlockingIOError  # the loop goes on to accept after the error; once is enough in its log
        if resource is not None:
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            # The system gives the lowest number that is free: all below it are taken.
            lowest = os.dup(self.fileno())
            os.close(lowest)
            if soft != resource.RLIM_INFINITY and lowest >= soft - KEPT_FILES:
                self._full_at = time.monotonic()
                raise OSError(errno.EMFILE, "the files left are kept for the requests under way")
        return super().accept()
