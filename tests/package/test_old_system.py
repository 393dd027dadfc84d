"""A real system that is too old: Debian 11, whose C library is glibc 2.31."""

import os
import subprocess
from pathlib import Path

import bare_machine
import pytest
from fakes import namespaces

pytestmark = [pytest.mark.package, pytest.mark.timeout(600)]
DEB = bare_machine.built_package("outrider_*.deb")
BUNDLE = bare_machine.ROOT / "dist" / "plain" / "outrider"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "outrider" / "chroots"


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    if DEB is None or not BUNDLE.exists():
        pytest.skip("NO OLD SYSTEM TESTED: there is no package in dist/; make it first: make bundle deb")
    if reason := bare_machine.why_not() or namespaces.available():
        pytest.skip(f"NO OLD SYSTEM TESTED: {reason}")
    try:
        bare_machine.root_archive(CACHE, "bullseye")
    except subprocess.CalledProcessError:
        pytest.skip("NO OLD SYSTEM TESTED: Debian 11 is not to be had any more")
    place = tmp_path_factory.mktemp("old")
    with namespaces.lone() as alone, bare_machine.bare_machine(place, CACHE, alone, "bullseye") as machine:
        yield machine


def test_the_package_refuses_before_anything_is_changed(machine):
    os.link(DEB, machine.path("/tmp/outrider.deb"))
    refused = machine.run("dpkg", "-i", "/tmp/outrider.deb", check=False)
    print(refused.stderr)
    assert refused.returncode != 0
    assert "this system's C library is glibc 2.31, and the program needs 2." in refused.stderr
    assert "or build it" in refused.stderr
    assert not machine.path("/usr/lib/outrider").exists()


def test_the_archive_says_which_c_library_it_misses(machine):
    subprocess.run(
        ["tar", "-C", str(BUNDLE.parent), "-cf", str(machine.path("/tmp/release.tar")), "outrider"], check=True
    )
    machine.run("tar", "-C", "/opt", "-xf", "/tmp/release.tar")
    refused = machine.run("/opt/outrider/outrider", "serve", check=False)
    print(refused.stderr)
    assert refused.returncode == 255
    assert "version `GLIBC_2." in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert not machine.path("/root/.local").exists()
