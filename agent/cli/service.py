"""``outrider service``: the daemon started by the machine instead of by hand."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import click

from agent import executable
from agent.cli.invocation import json_option
from agent.cli.output import emit_json
from agent.errors import ConfigError
from agent.service.definition import Scope, ServiceManager

MANAGERS = {
    "linux": "agent.service.systemd:Systemd",
    "darwin": "agent.service.launchd:Launchd",
    "win32": "agent.service.windows:WindowsServices",
}
_scope_option = click.option(
    "--system/--user",
    "system",
    default=None,
    help="The machine's service, or yours. Default: the machine's as root, else yours.",
)


def manager() -> ServiceManager:
    """Return the service manager of this system. Raises ConfigError where there is none that is known."""
    if sys.platform not in MANAGERS:
        raise ConfigError(f"no service manager is known for {sys.platform}: have it run `outrider serve`")
    module, _, name = MANAGERS[sys.platform].partition(":")
    found: ServiceManager = getattr(importlib.import_module(module), name)()
    return found


@click.group()
def service() -> None:
    """Have the machine start the daemon, and see how it is."""


@service.command()
@_scope_option
@json_option
def install(*, system: bool | None, as_json: bool) -> None:
    """Start the daemon now, and with every login or boot.

    Example:  outrider service install
    """
    _told(manager().install(executable.command(), _scope(system)), as_json=as_json)


@service.command()
@_scope_option
@json_option
def uninstall(*, system: bool | None, as_json: bool) -> None:
    """Stop the daemon and start it no more; data and configuration stay.

    Example:  outrider service uninstall
    """
    _told(manager().uninstall(_scope(system)), as_json=as_json)


@service.command()
@_scope_option
@json_option
def start(*, system: bool | None, as_json: bool) -> None:
    """Start the installed service.

    Example:  outrider service start
    """
    scope = _scope(system)
    manager().start(scope)
    _told(f"the {scope.value} service is started", as_json=as_json)


@service.command()
@_scope_option
@json_option
def stop(*, system: bool | None, as_json: bool) -> None:
    """Stop the service until the next boot or login.

    Example:  outrider service stop
    """
    scope = _scope(system)
    manager().stop(scope)
    _told(f"the {scope.value} service is stopped", as_json=as_json)


@service.command()
@_scope_option
@json_option
def status(*, system: bool | None, as_json: bool) -> int:
    """Say whether the service is installed and runs. Exit code 1 when it does not run.

    Example:  outrider service status
    """
    scope = _scope(system)
    state = manager().state(scope)
    if as_json:
        emit_json(
            {"scope": scope.value, "installed": state.installed, "running": state.running, "detail": state.detail}
        )
    else:
        click.echo(f"{scope.value} service: {'installed' if state.installed else 'not installed'}, {state.detail}")
    return 0 if state.running else 1


@service.command()
@_scope_option
@click.option("--lines", default=100, show_default=True, type=click.IntRange(1, 100_000), help="How many of the last.")
@click.option("--follow", is_flag=True, help="Go on until Ctrl-C.")
@json_option
def logs(*, system: bool | None, lines: int, follow: bool, as_json: bool) -> int:
    """Show the daemon's log. With --json: the command that shows it.

    Example:  outrider service logs --follow
    """
    command = manager().logs(_scope(system), lines, follow=follow)
    if as_json:
        emit_json({"command": command})
        return 0
    try:
        return subprocess.run(command, check=False).returncode
    except OSError as error:
        raise ConfigError(f"{command[0]} cannot be run: {error}") from error


def _told(text: str, *, as_json: bool) -> None:
    if as_json:
        emit_json({"done": text})
    else:
        click.echo(text)


def _scope(system: bool | None) -> Scope:
    if system is None:
        system = hasattr(os, "geteuid") and os.geteuid() == 0
    return Scope.SYSTEM if system else Scope.USER
