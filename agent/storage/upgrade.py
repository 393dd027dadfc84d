"""Bringing a database to this release's schema in a child process: what migrations import must not stay in this one."""

from __future__ import annotations

import subprocess
from pathlib import Path

from agent import executable
from agent.errors import DiskFull, ForeignDatabase, StorageError, WrongKey


def copy_aside(path: Path, version: int) -> Path:
    """Return where migrations keep a database as it was under an older schema."""
    return path.with_name(f"{path.name}.schema-{version}")


def upgrade(path: Path, key: bytes) -> None:
    """Run the migrations that a database lacks; the key goes by pipe. The caller holds the instance lock.

    Raises DiskFull, WrongKey, ForeignDatabase or StorageError.
    """
    child = subprocess.run(executable.command("migrate", str(path)), input=key, capture_output=True, check=False)
    if child.returncode:
        lines = child.stderr.decode("utf-8", "replace").strip().splitlines()
        code, _, message = lines[-1].partition(": ") if lines else ("", "", f"exit status {child.returncode}")
        kinds: dict[str, type[StorageError]] = {kind.code: kind for kind in (DiskFull, WrongKey, ForeignDatabase)}
        raise kinds.get(code, StorageError)(f"the database could not be prepared: {message}")
