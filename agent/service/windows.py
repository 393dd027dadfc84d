"""The service under Windows, by pywin32. Written by its manual; never run on Windows by its authors.

The service manager starts ``outrider windows-service``; that starts ``outrider serve`` as a child
and sends it Ctrl-Break when the service shall stop.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from agent import executable
from agent.errors import ConfigError
from agent.service.definition import NAME, Scope, ServiceState, asked, run

TITLE = "Outrider"
_STOP_WITHIN_S = 45
_ADMINISTRATOR = "open the terminal as administrator"
_ONLY_MACHINE = "a service of Windows belongs to the machine: add --system"


def creation(program: Sequence[str]) -> list[str]:
    """Return the argv that makes the service known: started at boot, under an account without rights of its own."""
    path = subprocess.list2cmdline([*program, "windows-service"])
    account = rf"NT SERVICE\{NAME}"
    return ["sc.exe", "create", NAME, "binPath=", path, "start=", "auto", "obj=", account, "DisplayName=", TITLE]


def parsed_state(text: str) -> str:
    """Return RUNNING, STOPPED, ... of what ``sc.exe query`` printed; empty when it names none."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "STATE":
            return value.split()[1] if len(value.split()) > 1 else ""
    return ""


class WindowsServices:
    """The verbs, by sc.exe."""

    def install(self, program: Sequence[str], scope: Scope) -> str:
        _need_machine(scope)
        run(creation(program), remedy=_ADMINISTRATOR)
        # Again after 5 s, twice; then not before a day has passed.
        actions = "restart/5000/restart/5000//"
        run(["sc.exe", "failure", NAME, "reset=", "86400", "actions=", actions], remedy=_ADMINISTRATOR)
        run(["sc.exe", "start", NAME], remedy=_ADMINISTRATOR)
        return f"the service {NAME} is installed and runs from boot on"

    def uninstall(self, scope: Scope) -> str:
        _need_machine(scope)
        asked(["sc.exe", "stop", NAME])
        run(["sc.exe", "delete", NAME], remedy=_ADMINISTRATOR)
        return f"the service {NAME} is gone; data and configuration stay"

    def start(self, scope: Scope) -> None:
        _need_machine(scope)
        run(["sc.exe", "start", NAME], remedy=_ADMINISTRATOR)

    def stop(self, scope: Scope) -> None:
        _need_machine(scope)
        run(["sc.exe", "stop", NAME], remedy=_ADMINISTRATOR)

    def state(self, scope: Scope) -> ServiceState:
        _need_machine(scope)
        code, text = asked(["sc.exe", "query", NAME])
        state = parsed_state(text)
        return ServiceState(code == 0, state == "RUNNING", state or "not installed")

    def logs(self, scope: Scope, lines: int, *, follow: bool) -> list[str]:
        _need_machine(scope)
        query = f"Get-WinEvent -ProviderName {NAME} -MaxEvents {lines} | Format-List TimeCreated, Message"
        return ["powershell.exe", "-NoProfile", "-Command", query]


def _need_machine(scope: Scope) -> None:
    if scope is Scope.USER:
        raise ConfigError(_ONLY_MACHINE)


def main() -> int:
    """Be the service: called by the service manager of Windows, by nobody else."""
    if sys.platform != "win32":
        raise ConfigError("outrider windows-service is started by the service manager of Windows only")
    import servicemanager
    import win32serviceutil

    servicemanager.Initialize()
    servicemanager.PrepareToHostSingle(_service_class(win32serviceutil))
    servicemanager.StartServiceCtrlDispatcher()
    return 0


def _service_class(win32serviceutil: Any) -> Any:
    """Return the class that pywin32 runs; its base exists on Windows only."""

    class Service(win32serviceutil.ServiceFramework):  # type: ignore[misc]
        _svc_name_ = NAME
        _svc_display_name_ = TITLE

        def __init__(self, arguments: Any) -> None:
            super().__init__(arguments)
            self._child: subprocess.Popen[bytes] | None = None

        def SvcDoRun(self) -> None:  # noqa: N802 - pywin32's name
            group = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)  # else Ctrl-Break would end this one too
            self._child = subprocess.Popen(executable.command("serve"), creationflags=group)
            self._child.wait()

        def SvcStop(self) -> None:  # noqa: N802 - pywin32's name
            if self._child is None:
                return
            self._child.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))
            try:
                self._child.wait(_STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                self._child.kill()

    return Service
