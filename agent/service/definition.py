"""What every service manager is asked for, and how its own programs are run."""

from __future__ import annotations

import enum
import subprocess
from collections.abc import Sequence
from typing import Protocol

import msgspec

from agent.errors import ConfigError

NAME = "outrider"


class Scope(enum.Enum):
    """Whose service it is: one user's, from login on (or from boot, where he lingers), or the machine's."""

    USER = "user"
    SYSTEM = "system"


class ServiceState(msgspec.Struct, frozen=True):
    """What the manager says of the service."""

    installed: bool
    running: bool
    detail: str  # one line in the manager's own words


class ServiceManager(Protocol):
    """One kind of service manager. Each verb raises ConfigError, with what to do, when the manager refuses it."""

    def install(self, program: Sequence[str], scope: Scope) -> str:
        """Make the service known, have it start with the machine or the login, and start it. Returns what was done."""

    def uninstall(self, scope: Scope) -> str:
        """Stop it and make it unknown; data and configuration stay. Returns what was done."""

    def start(self, scope: Scope) -> None: ...

    def stop(self, scope: Scope) -> None: ...

    def state(self, scope: Scope) -> ServiceState: ...

    def logs(self, scope: Scope, lines: int, *, follow: bool) -> list[str]:
        """Return the argv that shows the log."""


def run(command: Sequence[str], *, remedy: str) -> str:
    """Run a manager's program and return what it printed. Raises ConfigError with its last words and the remedy."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise ConfigError(f"{command[0]} cannot be run ({error}): {remedy}") from error
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise ConfigError(f"`{' '.join(command)}` failed: {words[-1] if words else 'without a word'}; {remedy}")
    return done.stdout


def asked(command: Sequence[str]) -> tuple[int, str]:
    """Run a program that only tells something. Returns its exit status (127: not there) and what it printed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError:
        return 127, ""
    return done.returncode, done.stdout.strip()
