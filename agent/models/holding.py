"""Lock files: one holder at a time, or several that share, across threads and processes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.errors import StorageError, WrongState

_POLL_S = 0.05
_CHANGING_S = 30.0  # longest that another change of the same file is waited for


@contextmanager
def held(path: Path, busy: str, *, shared: bool = False, patience_s: float = 0.0) -> Iterator[None]:
    """Hold a lock file, making it where needed; the system lets go of it when the process ends.

    Who holds it alone may remove the file. Raises WrongState(``busy``) when others hold it for
    longer than ``patience_s``, OSError when it cannot be made. Windows has no such locks: there
    nobody waits.
    """
    deadline = time.monotonic() + patience_s
    while (handle := _locked(path, shared=shared)) is None:
        if time.monotonic() >= deadline:
            raise WrongState(busy)
        time.sleep(_POLL_S)
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """Hold a file that is read, changed and replaced: of two who do so at once, one would undo what the other wrote.

    Its folder must be there. Raises WrongState when others hold it for long, OSError.
    """
    busy = f"{path} is being changed by another call; try again"
    with held(path.with_name(f"{path.name}.lock"), busy, patience_s=_CHANGING_S):
        yield


@contextmanager
def changing_list(path: Path) -> Iterator[None]:
    """``changing``, for a small file in a folder that may have to be made. Raises WrongState, StorageError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with changing(path):
            yield
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}; check its permissions") from error


def _locked(path: Path, *, shared: bool) -> int | None:
    """Return an open file that holds the lock, or None while another does."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        if not _lock(handle, shared=shared):
            os.close(handle)
            return None
        if _is_at(handle, path):
            return handle
        os.close(handle)  # its last holder has removed it: a lock that nobody else would see


def _lock(handle: int, *, shared: bool) -> bool:
    if os.name != "posix":
        return True
    import fcntl

    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False
