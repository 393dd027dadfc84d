"""The service under systemd: hardened as far as the program bears it, see systemd.exec(5)."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from agent.errors import ConfigError
from agent.service.definition import NAME, Scope, ServiceState, asked, run

UNIT = f"{NAME}.service"
_HERE = Path(__file__).parent
_NONE = (
    "this machine does not run systemd: have whatever starts programs here (OpenRC, runit, a container) "
    "run `outrider serve`; it stays in the foreground and stops on SIGTERM"
)
OWN_USER = f"User={NAME}\nGroup={NAME}"  # made by the .deb and the .rpm
ANY_USER = f"DynamicUser=yes\nUser={NAME}"  # made by systemd itself, for as long as the service runs


def unit(program: Sequence[str], scope: Scope, identity: str = ANY_USER) -> str:
    """Return the unit's text. ``program`` is the argv that starts ``outrider``, without the verb."""
    system = scope is Scope.SYSTEM
    confinement = Template((_HERE / "system.conf").read_text(encoding="utf-8")).substitute(identity=identity)
    return Template((_HERE / UNIT).read_text(encoding="utf-8")).substitute(
        program=" ".join(map(_quoted, program)),
        place=confinement if system else "",
        target="multi-user.target" if system else "default.target",
    )


def _quoted(word: str) -> str:
    """Return a word of ExecStart=: % and $ are systemd's own, systemd.service(5)."""
    return shlex.quote(word.replace("%", "%%").replace("$", "$$"))


def unit_path(scope: Scope, environ: Mapping[str, str] = os.environ) -> Path:
    """Return where the administrator's units of this scope stand."""
    if scope is Scope.SYSTEM:
        return Path("/etc/systemd/system") / UNIT
    base = environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME", "/")) / ".config"
    return Path(base) / "systemd" / "user" / UNIT


class Systemd:
    """The verbs, by systemctl."""

    def install(self, program: Sequence[str], scope: Scope) -> str:
        self._need_systemd()
        path = unit_path(scope)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(unit(program, scope), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path} cannot be written ({error.strerror}): {_remedy(scope)}") from error
        self._control(scope, "daemon-reload")
        self._control(scope, "enable", "--now", UNIT)
        if scope is Scope.USER:
            return f"{path} is installed and runs whenever you are logged in; from boot on: loginctl enable-linger"
        return f"{path} is installed and runs from boot on; its data is in /var/lib/{NAME}"

    def uninstall(self, scope: Scope) -> str:
        self._need_systemd()
        path = unit_path(scope)
        if not path.exists():
            raise ConfigError(f"{path} is not there: nothing to uninstall" + _packaged(scope))
        self._control(scope, "disable", "--now", UNIT)
        path.unlink()
        self._control(scope, "daemon-reload")
        return f"{path} is gone; data and configuration stay"

    def start(self, scope: Scope) -> None:
        self._need_systemd()
        self._control(scope, "start", UNIT)

    def stop(self, scope: Scope) -> None:
        self._need_systemd()
        self._control(scope, "stop", UNIT)

    def state(self, scope: Scope) -> ServiceState:
        self._need_systemd()
        _, text = asked([*_systemctl(scope), "show", UNIT, "--property=LoadState,ActiveState,SubState,StatusText"])
        told = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        detail = f"{told.get('ActiveState', 'unknown')} ({told.get('SubState', '')}) {told.get('StatusText', '')}"
        return ServiceState(told.get("LoadState") == "loaded", told.get("ActiveState") == "active", detail.strip())

    def logs(self, scope: Scope, lines: int, *, follow: bool) -> list[str]:
        self._need_systemd()
        command = ["journalctl", f"--{'user-' if scope is Scope.USER else ''}unit={UNIT}", f"--lines={lines}"]
        return [*command, *(["--follow"] if follow else ["--no-pager"])]

    def _control(self, scope: Scope, *verb: str) -> None:
        run([*_systemctl(scope), *verb], remedy=_remedy(scope))

    def _need_systemd(self) -> None:
        if not Path("/run/systemd/system").is_dir():  # as sd_booted(3) looks
            raise ConfigError(_NONE)


def _systemctl(scope: Scope) -> list[str]:
    return ["systemctl", "--user"] if scope is Scope.USER else ["systemctl"]


def _remedy(scope: Scope) -> str:
    return "see `outrider service logs`" if scope is Scope.USER else "run it as root (sudo), or leave out --system"


def _packaged(scope: Scope) -> str:
    packaged = Path("/usr/lib/systemd/system") / UNIT
    return f"; {packaged} belongs to the package: remove that" if scope is Scope.SYSTEM and packaged.exists() else ""
