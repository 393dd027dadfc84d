"""The child that downloads, as whoever asks it sees it."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Callable
from typing import Self

import msgspec

from agent import executable
from agent.errors import EngineFailed
from agent.models.pull_job import Event, Failed, Fetched, Job, Listing, Progress, raised

_NOTES = 20  # last lines of the child's stderr that are kept

Follow = Callable[[Progress], None]


class PullChild:
    """One child; it ends with the block, whatever it does then. What has arrived stays."""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._notes = stack.enter_context(tempfile.TemporaryFile())
            self._child = subprocess.Popen(
                executable.command("pull-worker"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._notes
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        with self._stack, contextlib.suppress(BrokenPipeError):
            self._child.__exit__(None, None, None)

    def look(self, job: Job) -> Listing:
        """Return what the source offers. Raises what the child met, or EngineFailed."""
        end = self._do(job, lambda _: None)
        assert isinstance(end, Listing)
        return end

    def fetch(self, job: Job, follow: Follow) -> None:
        """Download the files of a job into its folder. Raises the same."""
        end = self._do(job, follow)
        assert isinstance(end, Fetched)

    def _do(self, job: Job, follow: Follow) -> Listing | Fetched:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(msgspec.json.encode(job) + b"\n")
            self._child.stdin.flush()
        for line in self._child.stdout:
            event: Event = msgspec.json.decode(line, type=Event)
            if isinstance(event, Progress):
                follow(event)
            elif isinstance(event, Failed):
                raise raised(event)
            else:
                return event
        status = self._child.wait()
        self._notes.seek(0)
        last = self._notes.read().decode("utf-8", "replace").splitlines()[-_NOTES:]
        told = f"signal {-status}" if status < 0 else f"status {status}"
        raise EngineFailed(f"the process that downloads ended with {told}: {' | '.join(last)[-800:]}; pull again")
