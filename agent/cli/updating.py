"""Replacing the program by a newer one, so that at every moment one of the two is whole and in place.

The new one proves itself before anything changes: it starts, on a copy of the database, with no target, so that
nothing can leave. Then the daemon stops, the database is copied, and both folders change places in one step
(renameat2(2), RENAME_EXCHANGE). If the new one does not get ready after all, they change back. A program that is
killed in between leaves the old one or the new one in place, and the database of the one that is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from agent.cli.child_daemon import last_line, running, until_healthy
from agent.cli.client import DaemonAddress, find_daemon
from agent.errors import ConfigError, DaemonUnreachable, ModelRejected, OutriderError, StorageError
from agent.service.release import PROGRAM, Release, unpacked
from agent.storage import backup as storage_backup
from agent.storage import keys
from agent.storage.connection import DATABASE_NAME

READY_WITHIN_S = 60.0
_STOP_WITHIN_S = 60.0
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
PREVIOUS = ".previous"  # beside the program's folder: what was there before
INCOMING = ".incoming"

Tell = Callable[[str], None]


class Installed(msgspec.Struct, frozen=True):
    """What is to be replaced, and what it works on."""

    folder: Path  # with the program in it
    data_path: Path
    config: Path | None


def update(release: Release, installed: Installed, tell: Tell, restart: Callable[[], None] | None) -> str:
    """Install the release in place; return the version that is installed now.

    ``restart`` starts the daemon through its service manager; None: a daemon that ran is stopped, and a person starts
    it. Raises ConfigError, StorageError or ModelRejected; whatever it raises, the old program is in place and started.
    """
    incoming = installed.folder.with_name(installed.folder.name + INCOMING)
    shutil.rmtree(incoming, ignore_errors=True)  # of an update that was killed
    try:
        tell("unpacking")
        fresh = unpacked(release, incoming)
        version = _version(fresh)
        tell(f"trying {version} on a copy of the database")
        _tried(fresh, installed)
        _exchanged(fresh, installed, version, tell, restart)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    return version


def _version(folder: Path) -> str:
    try:
        done = subprocess.run(
            [str(folder / PROGRAM), "--version"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ModelRejected(f"the new program does not run on this machine: {error}") from error
    if done.returncode:
        words = done.stderr.strip().splitlines()
        raise ModelRejected(f"the new program does not run on this machine: {words[-1] if words else done.returncode}")
    return done.stdout.split()[-1]


def _tried(fresh: Path, installed: Installed) -> None:
    """Have the new program get ready on a copy of the data, with the real configuration but without any target."""
    arguments = ["--config", str(installed.config)] if installed.config else []
    read = subprocess.run(
        [str(fresh / PROGRAM), *arguments, "config", "show"], capture_output=True, text=True, check=False
    )
    if read.returncode:
        raise ConfigError(f"the new program does not take the present configuration: {read.stderr.strip()[-500:]}")
    if not (installed.data_path / DATABASE_NAME).exists():
        return  # never started: there is nothing to try it on
    with tempfile.TemporaryDirectory(prefix=".trial-", dir=installed.data_path) as place:
        data = Path(place) / "data"
        keys.make_private_folder(data)
        storage_backup.backup(installed.data_path, data / DATABASE_NAME)
        for name in (keys.KEY_NAME, keys.PLACE_NAME):
            with contextlib.suppress(FileNotFoundError):
                shutil.copy2(installed.data_path / name, data / name)
        empty = Path(place) / "outrider.toml"
        empty.touch()
        command = [fresh / PROGRAM, "--config", empty, "--data-dir", data, "--set", "server.port=0", "serve"]
        quiet = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
        log = Path(place) / "log"
        with running([str(part) for part in command], log, quiet) as daemon:
            try:
                until_healthy(data, daemon, READY_WITHIN_S)
            except DaemonUnreachable as error:
                raise ModelRejected(
                    f"the new program does not get ready: {last_line(log) or error}; nothing was changed"
                ) from error


def _exchanged(fresh: Path, installed: Installed, version: str, tell: Tell, restart: Callable[[], None] | None) -> None:
    running = find_daemon(installed.data_path)
    try:
        if running is not None:
            tell("stopping the daemon")
            _stop(running, installed.data_path)
        kept = _database_kept(installed.data_path, version)
        exchange(fresh, installed.folder)
    except OutriderError:
        _started_again(restart)
        raise
    try:
        if restart is not None:
            tell(f"starting {version}")
            restart()
            until_healthy(installed.data_path, None, READY_WITHIN_S)
    except (DaemonUnreachable, ConfigError) as error:
        tell(f"{version} does not get ready: going back")
        still = find_daemon(installed.data_path)
        if still is not None:
            _stop(still, installed.data_path)
        exchange(fresh, installed.folder)
        _database_back(kept, installed.data_path)
        _started_again(restart)
        raise ModelRejected(
            f"{version} did not get ready ({error}); the old program and its database are back"
        ) from error
    previous = installed.folder.with_name(installed.folder.name + PREVIOUS)
    shutil.rmtree(previous, ignore_errors=True)
    fresh.rename(previous)  # by now `fresh` names the old program
    if running is not None and restart is None:
        tell("the daemon that ran was started by hand, and is stopped: start it again")


def _started_again(restart: Callable[[], None] | None) -> None:
    """Have the old program serve again; why the new one does not is what is told."""
    if restart is not None:
        with contextlib.suppress(ConfigError):
            restart()


def _stop(address: DaemonAddress, data_path: Path) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(address.pid, signal.SIGTERM)
    until = time.monotonic() + _STOP_WITHIN_S
    while find_daemon(data_path) is not None:
        if time.monotonic() > until:
            raise ConfigError(f"the daemon (process {address.pid}) does not stop: stop it, then update again")
        time.sleep(0.1)


def _database_kept(data_path: Path, version: str) -> Path | None:
    """Copy the database aside, while nothing writes to it; None where there is none."""
    if not (data_path / DATABASE_NAME).exists():
        return None
    kept = data_path / f"before-{version}.db"
    kept.unlink(missing_ok=True)
    storage_backup.backup(data_path, kept)
    return kept


def _database_back(kept: Path | None, data_path: Path) -> None:
    """Put the copy back: the new program took no request, so nothing is newer than it."""
    if kept is None:
        return
    for suffix in ("-wal", "-shm"):
        (data_path / f"{DATABASE_NAME}{suffix}").unlink(missing_ok=True)
    kept.replace(data_path / DATABASE_NAME)
    keys.sync_folder(data_path)


def exchange(one: Path, other: Path) -> None:
    """Let two paths change places in one step of the file system. Raises StorageError, and nothing has changed then."""
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    if failed:
        reason = os.strerror(ctypes.get_errno())
        raise StorageError(f"{other} cannot be replaced: {reason}; nothing was changed")
