"""The scripts behind ``make``: one build of llama.cpp per kind of machine, and clear words when it cannot be."""

import os
import stat
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import environment
import llama_wheel

# Stands for the interpreter that runs pip: prints what a build prints, and makes a file where pip would.
BUILD = """#!/bin/sh
echo "$@" > {called}
echo "$CMAKE_ARGS" >> {called}
echo '  [1/3] /usr/bin/g++ -c ggml.c'
echo '  [3/3] linking'
while [ "$1" != "--wheel-dir" ]; do shift; done
{ending}
"""
MAKES_A_WHEEL = 'touch "$2/llama_cpp_python-0.3.36-py3-none-linux_x86_64.whl"'


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Let the build be a shell script; return where it writes how it was called."""
    monkeypatch.setattr(llama_wheel, "has_compiler", lambda: True)

    def prepare(ending=MAKES_A_WHEEL):
        program = tmp_path / "python"
        program.write_text(BUILD.format(called=tmp_path / "called", ending=ending))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(llama_wheel.sys, "executable", str(program))
        return tmp_path / "called"

    return prepare


def test_built_once_and_kept(cache, build, capfd):
    called = build()
    wheel = llama_wheel.wheel("native")
    assert wheel.is_relative_to(cache)
    assert wheel.exists()
    assert "--no-cache-dir" in called.read_text()
    assert "-DGGML_NATIVE=ON" in called.read_text()
    assert "building llama.cpp, about 10 minutes" in capfd.readouterr().err
    called.unlink()
    assert llama_wheel.wheel("native") == wheel
    assert not called.exists()
    assert capfd.readouterr().err == ""


def test_native_and_portable_do_not_mix(cache, build):
    called = build()
    native, portable = llama_wheel.wheel("native"), llama_wheel.wheel("portable")
    assert native.parent != portable.parent
    assert "-DGGML_CPU_ALL_VARIANTS=ON" in called.read_text()


def test_another_processor_gets_a_folder_of_its_own(cache, monkeypatch):
    here = {kind: llama_wheel.wheel_folder(kind) for kind in ("native", "portable")}
    monkeypatch.setattr(llama_wheel, "processor", lambda: "flags: sse2")
    assert llama_wheel.wheel_folder("native") != here["native"]
    assert llama_wheel.wheel_folder("portable") == here["portable"]


def test_a_failing_build_shows_the_end_of_its_log_and_leaves_no_wheel(cache, build):
    build("echo 'ggml.c:1: error: no such thing' >&2; exit 1")
    with pytest.raises(llama_wheel.CannotBuildError, match=r"error: no such thing\n.*the whole log is .*build\.log"):
        llama_wheel.wheel("native")
    assert not list(cache.rglob("*.whl"))
    assert not list(cache.rglob("build-*"))


def test_a_missing_compiler_gives_the_exact_command_and_never_sudo_by_itself(cache, monkeypatch, capfd):
    started = []
    monkeypatch.setattr(llama_wheel, "has_compiler", lambda: False)
    monkeypatch.setattr(llama_wheel.shutil, "which", lambda name: "/usr/bin/apt-get" if name == "apt-get" else None)
    monkeypatch.setattr(llama_wheel.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(llama_wheel.subprocess, "run", lambda command, **_: started.append(command))
    monkeypatch.setattr(sys, "argv", ["llama_wheel.py"])
    assert llama_wheel.main() == 1
    assert "run: sudo apt-get install -y build-essential" in capfd.readouterr().err
    assert started == []


def test_root_gets_the_compiler_installed(monkeypatch, tmp_path):
    """A script stands for apt-get: it makes the compiler appear."""
    programs = tmp_path / "bin"
    programs.mkdir()
    apt = programs / "apt-get"
    apt.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/apt\ncase "$1" in install) : > {programs}/cc; : > {programs}/c++;'
        f" /bin/chmod +x {programs}/*;; esac\n"
    )
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(llama_wheel.os, "geteuid", lambda: 0)
    llama_wheel.ensure_compiler()
    assert "build-essential" in (tmp_path / "apt").read_text()


def test_a_home_that_cannot_be_written_falls_back_to_the_tree(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(llama_wheel, "__file__", str(tmp_path / "tree" / "scripts" / "llama_wheel.py"))
    assert llama_wheel.wheel_folder("native").is_relative_to(tmp_path / "tree" / "build")


def test_the_heartbeat_says_how_far_it_is(monkeypatch):
    heard, said = threading.Event(), []

    def say(text):
        said.append(text)
        if "[57/193]" in text:
            heard.set()

    monkeypatch.setattr(llama_wheel, "HEARTBEAT_S", 0.001)
    monkeypatch.setattr(llama_wheel, "say", say)
    with llama_wheel.Heartbeat() as beat:
        beat.seen("  Looking in indexes")
        beat.seen("  [57/193] /usr/bin/g++ -c llama.cpp")
        assert heard.wait(30)
    assert said[-1].startswith("  building llama.cpp: [57/193], 0 min 0")


def test_this_machine_has_a_describable_processor():
    assert len(llama_wheel.processor()) > 3
    assert 1 <= llama_wheel.jobs() <= (os.cpu_count() or 1)


def test_a_python_without_venv_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(environment.shutil, "which", lambda name: "/usr/bin/apt-get")
    monkeypatch.setattr(environment.os, "geteuid", lambda: 1000)
    wanted = rf"sudo apt-get install -y python3\.{sys.version_info.minor}-venv"
    with pytest.raises(llama_wheel.CannotBuildError, match=wanted):
        environment.ensure_venv_module()


def test_a_failing_step_names_its_command():
    with pytest.raises(llama_wheel.CannotBuildError, match="this failed: false --flag"):
        environment.run(["false", "--flag"])
