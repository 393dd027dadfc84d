"""The daemon as a service: what is written for each manager, and what is told to it."""

import asyncio
import os
import plistlib
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from agent import service_manager
from agent.errors import ConfigError
from agent.service import launchd, systemd, windows
from agent.service.definition import Scope, asked, run

PROGRAM = ["/opt/my programs/outrider"]


def directives(text):
    return [line for line in text.splitlines() if "=" in line and not line.startswith("#")]


def test_the_unit_starts_the_program_and_waits_until_it_is_ready():
    lines = directives(systemd.unit(PROGRAM, Scope.USER))
    assert "ExecStart='/opt/my programs/outrider' serve" in lines
    assert "Type=notify" in lines
    assert "WantedBy=default.target" in lines
    assert not any(line.startswith(("User=", "ProtectSystem=")) for line in lines), "a user's manager cannot do it"


def test_the_units_of_the_machine_and_of_the_package_differ_in_their_user_only():
    ours, any_user = systemd.unit(PROGRAM, Scope.SYSTEM, systemd.OWN_USER), systemd.unit(PROGRAM, Scope.SYSTEM)
    assert set(directives(any_user)) ^ set(directives(ours)) == {"DynamicUser=yes", "Group=outrider"}
    assert "WantedBy=multi-user.target" in directives(ours)


def test_signs_of_systemd_in_a_path_stay_signs():
    assert "ExecStart='/a$$b/100%%' serve" in directives(systemd.unit(["/a$b/100%"], Scope.USER))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="NO UNIT CHECKED: there is no systemd-analyze")
@pytest.mark.parametrize("scope", Scope)
def test_systemd_understands_the_unit_and_finds_it_hardened(tmp_path, scope):
    path = tmp_path / "outrider.service"
    text = systemd.unit(["/bin/true"], scope, systemd.OWN_USER).replace("Documentation=man:outrider(1)\n", "")
    path.write_text(text)
    environment = {**os.environ, "SYSTEMD_LOG_LEVEL": "warning"}
    verified = subprocess.run(
        ["systemd-analyze", "verify", str(path)], check=False, env=environment, capture_output=True, text=True
    )
    complaints = [line for line in verified.stderr.splitlines() if path.name in line]
    assert complaints == []
    if scope is Scope.SYSTEM:
        judged = ["systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", str(path)]
        subprocess.run(judged, check=True, capture_output=True)


def test_the_property_list_starts_it_again_after_a_crash_only(tmp_path):
    told = plistlib.loads(launchd.plist(PROGRAM, tmp_path / "log", Scope.USER))
    assert told["ProgramArguments"] == [*PROGRAM, "serve"]
    assert told["KeepAlive"] == {"SuccessfulExit": False}
    assert "UserName" not in told
    assert plistlib.loads(launchd.plist(PROGRAM, tmp_path / "log", Scope.SYSTEM))["UserName"] == "_outrider"


def test_where_launchd_looks():
    home = {"HOME": "/Users/ada"}
    assert str(launchd.plist_path(Scope.USER, home)) == "/Users/ada/Library/LaunchAgents/dev.outrider.daemon.plist"
    assert str(launchd.plist_path(Scope.SYSTEM, home)) == "/Library/LaunchDaemons/dev.outrider.daemon.plist"


def test_windows_gets_one_command_line_with_the_path_quoted():
    made = windows.creation([r"C:\Program Files\outrider.exe"])
    assert made[made.index("binPath=") + 1] == r'"C:\Program Files\outrider.exe" windows-service'
    assert made[made.index("start=") + 1] == "auto"


def test_what_windows_says_of_a_service_is_read():
    text = "SERVICE_NAME: outrider\n        TYPE               : 10  WIN32_OWN_PROCESS\n        STATE              : 4  RUNNING\n"
    assert windows.parsed_state(text) == "RUNNING"
    assert windows.parsed_state("[SC] EnumQueryServicesStatus:OpenService FAILED 1060") == ""


def test_a_service_of_windows_is_the_machines():
    with pytest.raises(ConfigError, match="add --system"):
        windows.WindowsServices().start(Scope.USER)


@pytest.mark.skipif(Path("/run/systemd/system").is_dir(), reason="this machine runs systemd")
@pytest.mark.parametrize("verb", ["start", "stop", "state", "uninstall"])
def test_without_systemd_it_says_what_to_do_instead(verb):
    with pytest.raises(ConfigError, match=r"does not run systemd: .*outrider serve"):
        getattr(systemd.Systemd(), verb)(Scope.USER)


def test_what_a_manager_refuses_is_told_with_a_remedy():
    with pytest.raises(ConfigError, match="`false` failed: without a word; do this"):
        run(["false"], remedy="do this")
    with pytest.raises(ConfigError, match="cannot be run"):
        run(["/nonexistent/systemctl"], remedy="do this")
    assert asked(["/nonexistent/systemctl"]) == (127, "")


async def test_the_manager_hears_ready_life_and_the_end(tmp_path, monkeypatch):
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(address)
        told.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        monkeypatch.setenv("WATCHDOG_USEC", "20000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        async with service_manager.announced("listening"):
            assert b"READY=1" in await asyncio.to_thread(told.recv, 100)
            assert await asyncio.to_thread(told.recv, 100) == b"WATCHDOG=1"
        heard = {await asyncio.to_thread(told.recv, 100) for _ in range(1)}
        while heard == {b"WATCHDOG=1"}:
            heard = {await asyncio.to_thread(told.recv, 100)}
        assert heard == {b"STOPPING=1"}


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": "relative"}, {"NOTIFY_SOCKET": "/nonexistent/socket"}])
def test_nobody_to_be_told_is_no_failure(environ):
    assert service_manager.tell("READY=1", environ) is False


def test_the_watchdog_of_another_process_is_not_ours():
    assert service_manager.watchdog_interval_s({"WATCHDOG_USEC": "60000000"}) == 30.0
    assert service_manager.watchdog_interval_s({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}) is None
    assert service_manager.watchdog_interval_s({}) is None
