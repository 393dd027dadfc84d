"""``outrider backup``: a consistent copy of the database, and putting one back."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import emit_json, notice, size


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

    Example:  outrider backup /media/usb/outrider-backup.db
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
    from agent.cli.key import alone
    from agent.storage import backup as storage_backup

    data_path = invocation.data_path
    data_path.mkdir(mode=0o700, parents=True, exist_ok=True)
    passphrase = _passphrase(confirm=False) if with_key else None
    with alone(data_path):
        kept = storage_backup.restore(file, data_path, passphrase=passphrase)
    if as_json:
        emit_json({"restored": str(file), "kept": str(kept) if kept else None})
        return
    click.echo(f"{file} is back in {data_path}")
    if kept:
        notice(f"the database that was there is kept as {kept}")


def _passphrase(*, confirm: bool) -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    typed: str = click.prompt("passphrase", hide_input=True, confirmation_prompt=confirm, err=True)
    return typed
