"""Finished steps of a long measurement, kept on disk so that it goes on where it was stopped.

One file of JSON lines, a step each. The end of the process at any moment costs the step that was
under way: a line that was cut short counts as not done.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from agent.errors import StorageError, WrongState

_KEPT_DAYS = 7

T = TypeVar("T")


class _Line(msgspec.Struct, frozen=True, array_like=True):
    step: str
    value: msgspec.Raw


class Steps:
    """The steps of one measurement by name."""

    def __init__(self, file: IO[bytes] | None = None) -> None:
        """``file`` is read now and appended to; without one the steps are gone at the end."""
        self._file = file
        self._found: dict[str, msgspec.Raw] = {}
        if file is None:
            return
        whole = 0
        for line in file:
            try:
                step = msgspec.json.decode(line, type=_Line)
            except msgspec.DecodeError:
                break
            if not line.endswith(b"\n"):
                break
            self._found[step.step] = msgspec.Raw(bytes(step.value))
            whole += len(line)
        file.truncate(whole)
        file.seek(whole)

    def __len__(self) -> int:
        return len(self._found)

    def found(self, step: str, kind: type[T]) -> T | None:
        """Return what came of a step, or None when it was not done."""
        return None if step not in self._found else msgspec.json.decode(self._found[step], type=kind)

    def keep(self, step: str, value: object) -> None:
        """Keep what came of a step."""
        encoded = msgspec.Raw(msgspec.json.encode(value))
        self._found[step] = encoded
        if self._file is not None:
            self._file.write(msgspec.json.encode(_Line(step, encoded)) + b"\n")
            self._file.flush()


@contextmanager
def kept_steps(folder: Path, conditions: Sequence[str]) -> Iterator[Steps]:
    """Hold the steps of the measurement under these conditions; forget them when the block ends well.

    Raises WrongState while another call does the same, StorageError.
    """
    key = hashlib.sha256(msgspec.json.encode(conditions)).hexdigest()[:24]
    path = folder / f"{key}.jsonl"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for other in folder.glob("*.jsonl"):
            if other != path and other.stat().st_mtime < time.time() - _KEPT_DAYS * 86_400:
                other.unlink(missing_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise StorageError(f"{path} cannot be written to: {error.strerror}; check its permissions") from error
    with file:
        _lock(file)
        file.seek(0)
        yield Steps(file)
        path.unlink(missing_ok=True)


def _lock(file: IO[bytes]) -> None:
    if os.name != "posix":
        return
    import fcntl

    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise WrongState("the same model is being measured by another call; wait for it") from None
