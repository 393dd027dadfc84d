"""The .rpm of the same recipe: what is in it, and that rpm lays it into a root folder, where it runs."""

import os
import shutil
import subprocess
from pathlib import Path

import bare_machine
import pytest
from fakes import namespaces

pytestmark = [pytest.mark.package, pytest.mark.timeout(600)]
RPM = bare_machine.built_package("outrider-[0-9]*.rpm")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "outrider" / "chroots"


def rpm(*arguments):
    done = subprocess.run(["rpm", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def file():
    if RPM is None:
        pytest.skip("NO RPM TESTED: there is none in dist/; make it first: make bundle rpm")
    if shutil.which("rpm") is None:
        pytest.skip("NO RPM TESTED: rpm is missing (apt-get install -y rpm)")
    return str(RPM)


def test_its_digests_hold_and_it_names_its_files(file):
    assert "digests OK" in rpm("-K", "--nosignature", file)
    listed = rpm("-qlp", file).splitlines()
    for expected in ("/usr/bin/outrider", "/usr/lib/outrider/outrider", bare_machine.SERVICE, "/etc/outrider"):
        assert expected in listed
    assert not [path for path in listed if path.startswith("/usr/share/lintian")]
    assert "License     : Apache-2.0" in rpm("-qip", file)
    assert "glibc >= 2." in rpm("-qpR", file)


def test_it_installs_runs_and_goes(file, tmp_path):
    if reason := bare_machine.why_not() or namespaces.available():
        pytest.skip(f"NO RPM INSTALLED: {reason}")
    with namespaces.lone() as alone, bare_machine.bare_machine(tmp_path, CACHE, alone) as machine:
        at = ("--root", str(machine.root))
        rpm(*at, "--nodeps", "-i", file)  # Debian's root knows nothing of what rpm calls glibc
        assert machine.run("outrider", "--version").stdout.startswith("outrider, version")
        assert machine.run("stat", "-c", "%U %a", bare_machine.DATA).stdout.split() == ["outrider", "700"]
        changed = subprocess.run(
            ["rpm", *at, "-V", "--nodeps", "outrider"], capture_output=True, text=True, check=False
        ).stdout
        assert changed.splitlines() == [".....UG..    /etc/outrider"]  # given to the user by the package's script
        assert "READY=1" in machine.start_service()
        assert machine.stop_service() == 0
        rpm(*at, "-e", "outrider")
        assert not machine.path("/usr/lib/outrider").exists()
        assert machine.path(f"{bare_machine.DATA}/outrider.db").exists()
