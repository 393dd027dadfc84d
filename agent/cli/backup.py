"""``outrider backup``: a consistent copy of the database, and putting one back."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import counted, emit_json, notice, size


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--with-key", is_flag=True, help="Wrap the key under a passphrase beside the copy; --restore: use that.")
@click.option("--restore", is_flag=True, help="Put the copy FILE back. The daemon must be stopped.")
@json_option
@pass_invocation
def backup(invocation: Invocation, file: Path, with_key: bool, restore: bool, as_json: bool) -> None:
    """Write a consistent copy of the database.

    Works while the daemon runs. The copy is encrypted under the same key; the key itself is left
    out unless --with-key (the passphrase is asked for, or read from stdin).

    With --restore, what was open in the copy waits for a person again: it may have been answered or
    cancelled since. The database that was there is kept, and the log of what left is carried over.
    On a new machine: --restore --with-key; or `outrider key recovery --restore` first, then --restore.

    Example:  outrider backup /media/usb/outrider-backup.db

    Example:  outrider backup --restore --with-key /media/usb/outrider-backup.db
    """
    if restore:
        _restore(invocation, file, with_key=with_key, as_json=as_json)
        return
    from agent.storage import backup as storage_backup

    passphrase = _passphrase(confirm=True) if with_key else None
    report = storage_backup.backup(invocation.data_path, file, passphrase=passphrase)
    if as_json:
        emit_json(report)
        return
    click.echo(f"{report.path}: {size(report.bytes)}")
    if report.key_path:
        notice(f"the key, under your passphrase, is in {report.key_path}")
    else:
        notice("the key is NOT in it: keep the code of `outrider key recovery` elsewhere, or use --with-key")


def _restore(invocation: Invocation, file: Path, *, with_key: bool, as_json: bool) -> None:
    from agent.cli.access import now_ms
    from agent.cli.key import alone
    from agent.storage import backup as storage_backup

    data_path = invocation.data_path
    passphrase = _passphrase(confirm=False) if with_key else None
    with alone(data_path):
        report = storage_backup.restore(file, data_path, now_ms=now_ms(), passphrase=passphrase)
    done = report.reconciled
    if as_json:
        emit_json(
            {
                "restored": str(file),
                "kept": str(report.kept) if report.kept else None,
                "kept_key": str(report.kept_key) if report.kept_key else None,
                "held": done.held,
                "egress_rows_carried_over": done.carried,
                "egress_problem": done.log_problem,
            }
        )
        return
    click.echo(f"{file} is back in {data_path}")
    if report.kept:
        notice(f"the database that was there is kept as {report.kept}")
    if report.kept_key:
        notice(f"its key is kept as {report.kept_key}; remove both when you need them no more")
    if done.held:
        notice(f"{counted(done.held, 'row')} may have been sent or cancelled since: they wait for you (restored)")
        notice("see them with `outrider queue list`, then `outrider queue release` or `outrider queue cancel`")
    if done.carried:
        notice(f"{counted(done.carried, 'row')} of what left the device since were carried over")
    if done.log_problem:
        notice(f"the log of what left since the backup is not whole here: {done.log_problem}")


def _passphrase(*, confirm: bool) -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    typed: str = click.prompt("passphrase", hide_input=True, confirmation_prompt=confirm, err=True)
    return typed
