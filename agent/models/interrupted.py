"""What calls that were stopped have left: folders of pulls and makings, each with a lock beside it.

``<place>/<key>`` holds the files that are there so far, ``<place>/<key>.lock`` is held by the
call that works on them. The same call goes on there when it is given again. ``<place>/<key>.room``
says how large the folder will become, so that calls at the same time do not count on the same space.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from agent.errors import WrongState
from agent.models.holding import held

_ROOM = ".room"
_LOOK_S = 0.5  # longest that somebody holds a lock who only looks whether work goes on
KEPT_S = 7 * 86_400  # what is older is not expected to go on


class Interrupted(msgspec.Struct, frozen=True):
    """A folder that nobody works on."""

    path: Path
    bytes: int
    idle_s: float  # since something was written into it

    @property
    def old(self) -> bool:
        return self.idle_s > KEPT_S


@contextmanager
def working_folder(place: Path, key: str, busy: str) -> Iterator[Path]:
    """Hold the folder of one piece of work alone. Raises WrongState(``busy``), OSError."""
    place.mkdir(mode=0o700, exist_ok=True)
    folder = place / key
    with held(_lock_of(folder), busy, patience_s=_LOOK_S):
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            yield folder
        finally:
            _room_of(folder).unlink(missing_ok=True)


def promise_room(folder: Path, count: int) -> None:
    """Have other calls count so many bytes of this folder as taken, for as long as somebody works on it."""
    _room_of(folder).write_text(str(count), encoding="ascii")


def promised_room(place: Path, but: Path | None) -> int:
    """Return the bytes that are still to come into the folders of a place that are worked on now, ``but`` for one."""
    total = 0
    for note in place.glob(f"*{_ROOM}"):
        folder = note.with_suffix("")
        if folder == but:
            continue
        try:
            with held(_lock_of(folder), "in use", shared=True):
                if not folder.exists():
                    note.unlink(missing_ok=True)
                continue  # nobody works on it any more
        except WrongState:
            pass
        with contextlib.suppress(FileNotFoundError, ValueError):  # it ends, or begins, at this moment
            total += max(0, int(note.read_text(encoding="ascii")) - _seen(folder).bytes)
    return total


def interrupted(place: Path) -> list[Interrupted]:
    """Return the folders of a place that nobody works on now, the largest first."""
    found = []
    for folder in sorted(place.glob("*")):
        if not folder.is_dir():
            continue
        try:
            with held(_lock_of(folder), "in use"):
                found.append(_seen(folder))
        except WrongState:
            continue
    return sorted(found, key=lambda one: one.bytes, reverse=True)


def remove_interrupted(folder: Path) -> bool:
    """Remove a folder and its lock, unless somebody works on it: then return False."""
    try:
        with held(_lock_of(folder), "in use"):
            shutil.rmtree(folder)
            _room_of(folder).unlink(missing_ok=True)
            _lock_of(folder).unlink()
    except (WrongState, FileNotFoundError):
        return False
    return True


def sweep(place: Path) -> None:
    """Remove what is old; other work goes on whatever becomes of that."""
    for one in interrupted(place):
        if one.old:
            remove_interrupted(one.path)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _room_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{_ROOM}")


def folder_bytes(folder: Path) -> int:
    """Return how large the files of a folder are."""
    return _seen(folder).bytes


def _seen(folder: Path) -> Interrupted:
    files = [path.lstat() for path in folder.rglob("*") if not path.is_dir()]
    touched = max((seen.st_mtime for seen in (folder.lstat(), *files)), default=0.0)
    return Interrupted(folder, sum(seen.st_size for seen in files), time.time() - touched)
