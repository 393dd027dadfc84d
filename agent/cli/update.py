"""``outrider update``: a newer program from a file, never by itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import click

from agent import __version__
from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import emit_json, notice
from agent.errors import ConfigError

PACKAGED = Path("/usr/lib/outrider")
TRUSTED_NAME = "release-keys.json"  # in the data directory; the keys of bundles are apart from it


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--key", metavar="KEY", help="The public key of releases (RW..., or a .pub file); trusted from now on.")
@click.option("--check", is_flag=True, help="Only say whether FILE is signed by a trusted key.")
@json_option
@pass_invocation
def update(invocation: Invocation, file: Path, key: str | None, check: bool, as_json: bool) -> None:
    """Replace this program by the release in FILE, with its signature FILE.minisig beside it.

    The new program first proves itself on a copy of the database. If it does not get ready in the end, the old
    one and its database come back. The queue stays. Nothing is ever fetched: bring FILE yourself.

    Example:  outrider update outrider-0.2.0-linux-x86_64.tar.xz --key RWQ...
    """
    from agent.models.bundle_trust import given_key
    from agent.models.trusted_keys import TrustedKeys
    from agent.service import release

    trust = TrustedKeys(invocation.data_path / TRUSTED_NAME)
    given = given_key(key) if key else None
    found = release.checked(file, trust.keys() if given is None else (given,))
    if given is not None:
        trust.trust(given)
    if check:
        emit_json({"signed": True, "comment": found.comment}) if as_json else click.echo(f"signed: {found.comment}")
        return
    from agent.cli.updating import Installed
    from agent.cli.updating import update as replaced

    installed = Installed(_folder(), invocation.data_path, _config(invocation))
    version = replaced(found, installed, notice, _restart())
    if as_json:
        emit_json({"version": version, "was": __version__})
    else:
        click.echo(f"{version} is installed, {__version__} is kept beside it")


def _folder() -> Path:
    """Return the folder of this very program. Raises ConfigError where it is not ours to replace."""
    if not getattr(sys, "frozen", False):
        raise ConfigError("this program runs from source or from pip: update it there (git pull, pip install)")
    if sys.platform != "linux":
        raise ConfigError(
            "a program is replaced by `outrider update` on Linux only: stop the service, put the folder of the release "
            f"where {Path(sys.executable).parent} is, and start the service"
        )
    folder = Path(sys.executable).resolve().parent
    if folder == PACKAGED:
        raise ConfigError(
            f"{folder} belongs to the system's packages: install the newer package (sudo dpkg -i FILE.deb or "
            "sudo rpm -U FILE.rpm); it stops the daemon, keeps the queue, and the database is copied before it changes"
        )
    if not os.access(folder.parent, os.W_OK):
        raise ConfigError(f"{folder.parent} is not yours to write: run this as its owner")
    return folder


def _config(invocation: Invocation) -> Path | None:
    path = invocation.loaded.path
    return path if path.exists() else None


def _restart() -> Callable[[], None] | None:
    """Return how the service is started again; None where no service of this user runs."""
    from agent.cli.service import manager
    from agent.service.definition import Scope

    for scope in (Scope.USER, Scope.SYSTEM):
        try:
            if manager().state(scope).running:
                return lambda scope=scope: manager().start(scope)  # type: ignore[misc]
        except ConfigError:
            continue
    return None
