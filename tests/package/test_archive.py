"""The archive, unpacked by somebody into a home: no root, no package manager; xz is fetched as tar needs it."""

import json
import os
import subprocess
import time
from pathlib import Path

import bare_machine
import pytest
from fakes import namespaces

pytestmark = [pytest.mark.package, pytest.mark.timeout(600)]
BUNDLE = bare_machine.ROOT / "dist" / "demo" / "outrider"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "outrider" / "chroots"
HOME = "/home/somebody"
PROGRAM = f"{HOME}/.local/lib/outrider/outrider"


def test_unpacked_in_a_home_it_answers_and_goes_without_a_trace_elsewhere(tmp_path):
    if not BUNDLE.exists():
        pytest.skip("NO ARCHIVE TESTED: dist/demo is missing; make it first: make bundle")
    if reason := bare_machine.why_not() or namespaces.available():
        pytest.skip(f"NO ARCHIVE TESTED: {reason}")
    with namespaces.lone() as alone, bare_machine.bare_machine(tmp_path, CACHE, alone) as machine:
        machine.run("useradd", "--create-home", "somebody")
        subprocess.run(  # the release is this, through xz, which Debian's smallest root has no program for
            ["tar", "-C", str(BUNDLE.parent), "-cf", str(machine.path("/tmp/release.tar")), "outrider"], check=True
        )
        mine = {"user": "somebody:somebody", "environment": (f"HOME={HOME}", "USER=somebody")}
        line = "mkdir -p ~/.local/lib && tar -xf /tmp/release.tar -C ~/.local/lib && ~/.local/lib/outrider/outrider --version"
        assert machine.run("sh", "-c", line, **mine).stdout.startswith("outrider, version")
        refused = machine.run(PROGRAM, "service", "install", check=False, **mine)
        assert "does not run systemd" in refused.stderr
        daemon = subprocess.Popen(machine.command([PROGRAM, "serve"], **mine), stderr=subprocess.DEVNULL)
        try:
            told = machine.path(f"{HOME}/.local/share/outrider/daemon.json")
            until = time.monotonic() + bare_machine.PATIENCE_S
            while not told.exists():
                assert daemon.poll() is None
                assert time.monotonic() < until
                time.sleep(0.1)
            assert json.loads(told.read_text())["url"].startswith("http://127.0.0.1:")
            assert "Paris" in machine.run(PROGRAM, "ask", "What is the capital of France?", **mine).stdout
        finally:
            daemon.terminate()
            assert daemon.wait(bare_machine.PATIENCE_S) == 0
        outside = machine.run(
            "find", "/", "-xdev", "-user", "somebody", "-not", "-path", f"{HOME}/*", "-not", "-path", "/proc/*"
        ).stdout.split()
        assert outside == [HOME]
