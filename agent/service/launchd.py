"""The service under launchd, see launchd.plist(5). Written by its manual; never run on a Mac by its authors."""

from __future__ import annotations

import os
import plistlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.errors import ConfigError
from agent.service.definition import Scope, ServiceState, asked, run

LABEL = "dev.outrider.daemon"


def plist(program: Sequence[str], log: Path, scope: Scope) -> bytes:
    """Return the property list: started at login or boot, started again after a crash, never after a clean stop."""
    told = {
        "Label": LABEL,
        "ProgramArguments": [*program, "serve"],
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 5,
        "ExitTimeOut": 45,
        "Umask": 0o077,
        "ProcessType": "Interactive" if scope is Scope.USER else "Standard",
        "StandardErrorPath": str(log),
        "StandardOutPath": str(log),
    }
    if scope is Scope.SYSTEM:
        told["UserName"] = "_outrider"
        told["EnvironmentVariables"] = {
            "XDG_CONFIG_HOME": "/Library/Application Support",
            "XDG_DATA_HOME": "/Library/Application Support",
        }
    return plistlib.dumps(told, sort_keys=True)


def plist_path(scope: Scope, environ: Mapping[str, str] = os.environ) -> Path:
    """Return where launchd looks for it."""
    home = Path("/") if scope is Scope.SYSTEM else Path(environ.get("HOME", "/"))
    return home / "Library" / ("LaunchDaemons" if scope is Scope.SYSTEM else "LaunchAgents") / f"{LABEL}.plist"


def log_path(scope: Scope, environ: Mapping[str, str] = os.environ) -> Path:
    """Return where the daemon's log goes."""
    home = Path("/") if scope is Scope.SYSTEM else Path(environ.get("HOME", "/"))
    return home / "Library" / "Logs" / "outrider.log"


class Launchd:
    """The verbs, by launchctl."""

    def install(self, program: Sequence[str], scope: Scope) -> str:
        path, log = plist_path(scope), log_path(scope)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            log.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(plist(program, log, scope))
        except OSError as error:
            raise ConfigError(f"{path} cannot be written ({error.strerror}): {_remedy(scope)}") from error
        asked(["launchctl", "bootout", _service(scope)])  # an older one, if any
        run(["launchctl", "bootstrap", _domain(scope), str(path)], remedy=_remedy(scope))
        return f"{path} is installed and runs from {'boot' if scope is Scope.SYSTEM else 'login'} on"

    def uninstall(self, scope: Scope) -> str:
        path = plist_path(scope)
        if not path.exists():
            raise ConfigError(f"{path} is not there: nothing to uninstall")
        asked(["launchctl", "bootout", _service(scope)])
        path.unlink()
        return f"{path} is gone; data and configuration stay"

    def start(self, scope: Scope) -> None:
        run(["launchctl", "kickstart", _service(scope)], remedy=_remedy(scope))

    def stop(self, scope: Scope) -> None:
        run(["launchctl", "kill", "SIGTERM", _service(scope)], remedy=_remedy(scope))

    def state(self, scope: Scope) -> ServiceState:
        code, text = asked(["launchctl", "print", _service(scope)])
        lines = [line.strip() for line in text.splitlines()]
        told = next((line.partition("=")[2].strip() for line in lines if line.startswith("state =")), "not loaded")
        return ServiceState(plist_path(scope).exists(), code == 0 and told == "running", told)

    def logs(self, scope: Scope, lines: int, *, follow: bool) -> list[str]:
        return ["tail", "-n", str(lines), *(["-F"] if follow else []), str(log_path(scope))]


def _domain(scope: Scope) -> str:
    return "system" if scope is Scope.SYSTEM else f"gui/{os.getuid()}"


def _service(scope: Scope) -> str:
    return f"{_domain(scope)}/{LABEL}"


def _remedy(scope: Scope) -> str:
    return "run it with sudo, or leave out --system" if scope is Scope.SYSTEM else "see `outrider service logs`"
