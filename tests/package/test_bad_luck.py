"""The installed package where little is as it should be: one clear line, and nothing is lost.

The tests share one machine; it has no service manager.
"""

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import bare_machine
import pytest
from fakes import namespaces

pytestmark = [pytest.mark.package, pytest.mark.timeout(600)]
DEB = bare_machine.built_package("outrider-demo_*.deb")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "outrider" / "chroots"
MINE = ("HOME=/home/somebody", "USER=somebody")


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    if DEB is None:
        pytest.skip("NOTHING TESTED: there is no package with the demo model in dist/; make it first: make bundle deb")
    if reason := bare_machine.why_not() or namespaces.available():
        pytest.skip(f"NO BARE MACHINE TESTED: {reason}")
    with (
        namespaces.lone() as alone,
        bare_machine.bare_machine(tmp_path_factory.mktemp("bare"), CACHE, alone) as machine,
    ):
        os.link(DEB, machine.path("/tmp/outrider.deb"))
        machine.run("dpkg", "-i", "/tmp/outrider.deb")
        machine.run("useradd", "--create-home", "somebody")
        yield machine


@contextmanager
def mounted(machine, place, *options):
    where = machine.path(place)
    where.mkdir(exist_ok=True)
    subprocess.run(["mount", *options, str(where)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


def told(machine, *arguments, user="outrider:outrider", environment=()):
    """Return the exit code and the last line that a command said on stderr; never a traceback."""
    done = machine.run("outrider", *arguments, check=False, user=user, environment=environment)
    print(f"$ outrider {' '.join(arguments)}\n{done.stderr.strip()}  [{done.returncode}]")
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    return done.returncode, (done.stderr.strip().splitlines() or [""])[-1]


def test_without_a_service_manager_it_says_what_to_run_instead(machine):
    code, line = told(machine, "service", "install", user="root")
    assert code == 78
    assert "outrider serve" in line


def test_a_second_copy_names_the_first(machine):
    machine.start_service()
    code, line = told(machine, "serve", environment=("OUTRIDER_CONFIG=/etc/outrider/outrider.toml",))
    assert code == 75
    assert str(machine.service.pid) in line
    assert "Paris" in machine.run("outrider", "ask", "What is the capital of France?").stdout


def test_what_a_killed_one_left_is_not_in_the_way(machine):
    machine.kill_service()
    left = machine.path(f"{bare_machine.DATA}/daemon.json")
    assert left.exists()
    code, line = told(machine, "ask", "hello", user="root")
    assert code == 69
    assert "no daemon runs" in line
    assert "READY=1" in machine.start_service()
    assert machine.stop_service() == 0


def test_a_home_that_cannot_be_written(machine):
    home = machine.path("/home/somebody")
    (home / ".config/outrider").mkdir(parents=True)
    (home / ".config/outrider/outrider.toml").write_text("[server]\nport = 0\n")  # a daemon of one's own
    with mounted(machine, "/home/somebody", "--bind", str(home)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(home)], check=True)
        for command in (["serve"], ["ask", "hello"], ["get", "--yes"], ["bundle", "key"]):
            code, line = told(machine, *command, user="somebody:somebody", environment=MINE)
            assert code in {69, 74}, line
            assert "/home/somebody" in line
    assert list(home.glob(".local")) == []


def test_data_that_cannot_be_written_is_as_it_was_afterwards(machine):
    data = machine.path(bare_machine.DATA)
    before = {path: path.read_bytes() for path in data.glob("outrider.db*")}
    with mounted(machine, bare_machine.DATA, "--bind", str(data)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(data)], check=True)
        code, line = told(machine, "serve", environment=("OUTRIDER_CONFIG=/etc/outrider/outrider.toml",))
        assert code == 74
        assert bare_machine.DATA in line
    assert {path: path.read_bytes() for path in data.glob("outrider.db*")} == before


def test_it_answers_without_what_a_strict_policy_denies(machine):
    """/tmp takes no programs, /dev/shm and /run nothing at all, /sys and most of /proc are not to be read."""
    proc = machine.path("/proc")
    subprocess.run(["umount", "--lazy", str(proc)], check=True)
    try:
        with (
            mounted(machine, "/proc", "-t", "proc", "-o", "hidepid=2,subset=pid", "proc"),
            mounted(machine, "/tmp", "-t", "tmpfs", "-o", "noexec,nosuid,nodev,size=16m", "tmpfs"),
            mounted(machine, "/sys", "-t", "tmpfs", "-o", "mode=000", "tmpfs"),
            mounted(machine, "/dev/shm", "-t", "tmpfs", "-o", "mode=000", "tmpfs"),
            mounted(machine, "/run", "-t", "tmpfs", "-o", "mode=000", "tmpfs"),
        ):
            machine.path("/tmp").chmod(0o1777)
            assert "READY=1" in machine.start_service()
            answer = machine.run("outrider", "ask", "What is the capital of France?")
            assert "Paris" in answer.stdout, machine.log()
            assert machine.stop_service() == 0
    finally:
        subprocess.run(["mount", "-t", "proc", "proc", str(proc)], check=True)


def test_no_proc_at_all_is_told_or_does_without(machine):
    proc = machine.path("/proc")
    subprocess.run(["umount", "--lazy", str(proc)], check=True)
    try:
        code, line = told(machine, "--version", user="root")
        assert code == 0 or "/proc" in line
    finally:
        subprocess.run(["mount", "-t", "proc", "proc", str(proc)], check=True)
