"""What the package's own scripts do on a machine with a service manager: by small packages of the same recipe.

`systemctl` there is a program that writes down what it was asked; the state of the service is read from that.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import bare_machine
import pytest
from fakes import namespaces

sys.path.append(str(bare_machine.ROOT / "scripts"))
import linux_package

pytestmark = [pytest.mark.package, pytest.mark.timeout(300)]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "outrider" / "chroots"
SYSTEMCTL = "/usr/bin/systemctl"
LOG = "/var/log/systemctl"


@pytest.fixture
def recipe(tmp_path):
    """A recipe whose program is a line of shell."""
    stage = tmp_path / "stage"
    program = stage / "usr/lib/outrider/outrider"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho 1.0.0\n")
    program.chmod(0o755)
    settings = stage / "usr/share/outrider/outrider.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text("# settings\n")
    return linux_package.Recipe("outrider", "outrider-demo", "1.0.0", "2.17", 1 << 20, stage, "zstd")


@pytest.fixture
def machine(tmp_path):
    if reason := bare_machine.why_not() or namespaces.available():
        pytest.skip(f"NO SCRIPTS TESTED: {reason}")
    with namespaces.lone() as alone, bare_machine.bare_machine(tmp_path, CACHE, alone) as machine:
        machine.path("/run/systemd/system").mkdir(parents=True)
        machine.path(SYSTEMCTL).write_text(f'#!/bin/sh\necho "$1" >> {LOG}\n')
        machine.path(SYSTEMCTL).chmod(0o755)
        yield machine


def package(recipe, kind, place, version, **changes):
    """Make the small package of this version; return its path."""
    program = recipe.stage / "usr/lib/outrider/outrider"
    program.write_text(f"#!/bin/sh\necho {version}\n")
    try:
        made = linux_package.made(replace(recipe, version=version, **changes), kind, place)
    except linux_package.CannotBuildError as error:
        pytest.skip(f"NO SCRIPTS TESTED: {error}")
    return made


def running(machine):
    """Whether the service runs, by what its manager was asked."""
    asked = [word for word in machine.path(LOG).read_text().split() if word in {"start", "restart", "stop"}]
    return asked[-1] != "stop"


def installer(machine, kind):
    """Return what installs a file of this kind, and reports; rpm works on the machine's root from outside."""
    if kind == "deb":
        return lambda path: machine.run("dpkg", "-i", f"/root/{path.name}", check=False)
    if shutil.which("rpm") is None:
        pytest.skip("NO RPM TESTED: rpm is missing (apt-get install -y rpm)")
    command = ["rpm", "--root", str(machine.root), "--nodeps", "-U"]
    return lambda path: subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)


def version(machine):
    return machine.run("outrider").stdout.strip()


@pytest.mark.parametrize("kind", ["deb", "rpm"])
def test_the_service_runs_after_an_install_and_after_an_upgrade(machine, recipe, kind):
    install = installer(machine, kind)
    for number in ("1.0.0", "2.0.0"):
        done = install(package(recipe, kind, machine.path("/root"), number))
        assert done.returncode == 0, done.stderr
        assert version(machine) == number
        assert running(machine)
    asked = machine.path(LOG).read_text().split()
    assert asked.count("enable") == 2
    assert "disable" not in asked
    assert machine.run("stat", "-c", "%U %a", bare_machine.DATA).stdout.split() == ["outrider", "700"]
    assert asked.index("stop") < len(asked) - 1 - asked[::-1].index("restart")  # before the new one, not after


@pytest.mark.parametrize("kind", ["deb", "rpm"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": 1 << 50}, "MiB are free"),
        ({"glibc": "2.99"}, "this system's C library is glibc 2."),
    ],
)
def test_what_does_not_fit_is_refused_and_the_old_one_goes_on(machine, recipe, kind, change, words):
    install = installer(machine, kind)
    assert install(package(recipe, kind, machine.path("/root"), "1.0.0")).returncode == 0
    refused = install(package(recipe, kind, machine.path("/root"), "2.0.0", **change))
    print(refused.stderr)
    assert refused.returncode != 0
    assert words in refused.stderr
    assert "Nothing was changed" in refused.stderr
    assert version(machine) == "1.0.0"
    assert running(machine)


def test_a_disk_that_fills_up_while_it_unpacks_leaves_the_old_one(machine, recipe):
    install = installer(machine, "deb")
    assert install(package(recipe, "deb", machine.path("/root"), "1.0.0")).returncode == 0
    place = machine.path("/usr/lib/outrider")
    kept = machine.path("/root/kept")
    shutil.copytree(place, kept)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], check=True)
    try:
        shutil.copytree(kept, place, dirs_exist_ok=True)
        (recipe.stage / "usr/lib/outrider/library").write_bytes(os.urandom(4 << 20))
        full = install(package(recipe, "deb", machine.path("/root"), "2.0.0", size=-linux_package.SPARE))
        print(full.stderr)
        assert full.returncode != 0
        assert "No space left on device" in full.stderr
        assert version(machine) == "1.0.0"
        assert running(machine)
        assert "installed" in machine.run("dpkg", "-s", "outrider").stdout
        assert [path.name for path in place.iterdir()] == ["outrider"]
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
