"""``outrider key``: the key that the database is encrypted with."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import confirm, emit_json, notice, table


@contextmanager
def alone(data_path: Path) -> Iterator[None]:
    """Own the data directory (made if it is not there) meanwhile. Raises AlreadyRunning when a daemon does."""
    from agent.storage.instance_lock import InstanceLock
    from agent.storage.keys import make_private_folder

    make_private_folder(data_path)
    lock = InstanceLock(data_path)
    try:
        yield
    finally:
        lock.release()


@click.group()
def key() -> None:
    """See, replace and recover the database key."""


@key.command()
@json_option
@pass_invocation
def status(invocation: Invocation, as_json: bool) -> None:
    """Say where the key is and what that place protects against. Never prints the key.

    Example:  outrider key status
    """
    from agent.storage import keys

    found = keys.status(invocation.data_path)
    if as_json:
        emit_json(found)
        return
    table(
        ["FIELD", "VALUE"],
        [
            ("place", found.place),
            ("path", found.path),
            ("fingerprint", found.fingerprint),
            ("protects against", found.protects_against),
            ("does not protect", found.does_not_protect_against),
        ],
    )


@key.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_invocation
def rotate(invocation: Invocation, yes: bool, as_json: bool) -> None:
    """Encrypt the database anew under a new key. The daemon must be stopped.

    Backups and recovery codes made before keep needing the old key.

    Example:  outrider key rotate
    """
    from agent.storage import keys

    data_path = invocation.data_path
    with alone(data_path):
        before = keys.status(data_path).fingerprint
        if not yes:
            notice("every page of the database is written again; earlier backups and recovery codes need the old key")
            confirm("rotate the key now?")
        keys.rotate(data_path)
        after = keys.status(data_path).fingerprint
    if as_json:
        emit_json({"old_fingerprint": before, "fingerprint": after})
        return
    click.echo(f"the key is new: fingerprint {after} (it was {before})")
    notice("print a new recovery code now: outrider key recovery")


@key.command()
@click.option("--restore", is_flag=True, help="Read a code (asked for, or from stdin) and put the key back.")
@json_option
@pass_invocation
def recovery(invocation: Invocation, restore: bool, as_json: bool) -> None:
    """Print the key as a code to keep on paper, or put it back from one.

    On a new machine put the key back first, then the database: outrider backup --restore FILE.

    Whoever has the code and a copy of the database can read it all.

    Example:  outrider key recovery

    Example:  outrider key recovery --restore
    """
    from agent.storage import keys
    from agent.storage.connection import DATABASE_NAME

    data_path = invocation.data_path
    if not restore:
        code = keys.recovery_code(keys.load(data_path))
        if as_json:
            emit_json({"recovery_code": code})
            return
        notice("keep this away from the machine; with it and a copy of the database everything can be read")
        click.echo(code)
        return
    typed = click.prompt("recovery code", err=True) if sys.stdin.isatty() else sys.stdin.read()
    material = keys.from_recovery_code(typed)
    with alone(data_path):
        restored = keys.restore(data_path, material)
        opens = (data_path / DATABASE_NAME).exists()
    if as_json:
        emit_json({"path": str(restored.path)})
        return
    click.echo(f"the key is back at {restored.path}{' and opens the database' if opens else ''}")
    if not opens:
        notice("there is no database yet: put one back with `outrider backup --restore FILE`")


@key.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_invocation
def destroy(invocation: Invocation, yes: bool, as_json: bool) -> None:
    """Make everything unreadable for good: queue, answers, log, and every backup under this key.

    The key is overwritten first, so that copies of the database elsewhere are worth nothing either, unless
    somebody has a recovery code or a backup with the key. The daemon must be stopped. Models stay, and so do
    the tasks and their example files beside the configuration.

    Example:  outrider key destroy
    """
    from agent.storage.destruction import destroy as destroyed

    data_path = invocation.data_path
    with alone(data_path):
        if not yes:
            notice(f"queue, answers and log in {data_path} will be unreadable for good, for you too")
            confirm("destroy the key now?")
        gone = destroyed(data_path)
    if as_json:
        emit_json({"files": gone})
        return
    click.echo(f"the key is destroyed; {gone} files are gone")
    notice("recovery codes on paper and backups made --with-key still hold it: destroy those too")
