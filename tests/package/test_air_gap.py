"""From one file on a USB stick to an answer: no interface but loopback, and a resolver that never says anything.

make package-test        prints each command and what it said
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import bare_machine
import pytest
from fakes import namespaces

from agent.models.minisign import own_key

pytestmark = [pytest.mark.package, pytest.mark.timeout(600)]
DEB = bare_machine.built_package("outrider_*.deb")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "outrider" / "chroots"
STICK = "/media/stick"
CONFIG = """
data_dir = "/var/lib/outrider"

[confidence]
threshold = 0.999

[[targets]]
name = "main"
base_url = "https://api.example.com/v1"
model = "big"
egress = "allow"
"""


class SilentResolver:
    """Takes every question on port 53 of loopback and answers none, by UDP and TCP."""

    def __init__(self, namespace):
        self.asked = []
        self._over = threading.Event()
        self.udp, self.tcp = namespace.call(self._listening)
        self._thread = threading.Thread(target=self._take)
        self._thread.start()

    @staticmethod
    def _listening():
        udp, tcp = (socket.socket(socket.AF_INET, kind) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM))
        for one in (udp, tcp):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", 53))
        tcp.listen()
        udp.settimeout(0.2)
        return udp, tcp

    def _take(self):
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                self.asked.append(self.udp.recvfrom(4096)[0])

    def close(self):
        self._over.set()
        self._thread.join()
        self.udp.close()
        self.tcp.close()


@pytest.fixture(scope="module")
def stick(tmp_path_factory):
    """(the one file, the key of releases, the key of the device that wrote the models)."""
    if DEB is None:
        pytest.skip("NOTHING TESTED: there is no package in dist/; make it first: make bundle deb")
    if reason := bare_machine.why_not() or namespaces.available():
        pytest.skip(f"NO BARE MACHINE TESTED: {reason}")
    place = tmp_path_factory.mktemp("stick")
    program = bare_machine.ROOT / "dist" / "demo" / "outrider" / "outrider"
    if not program.exists():
        pytest.skip("NO AIR GAP TESTED: dist/demo is missing; make it first: make bundle")
    models = place / "models.outrider"
    device = {"HOME": str(place), "PATH": os.environ["PATH"]}
    subprocess.run(
        [str(program), "bundle", "export", "smollm2-135m-instruct", str(models)],
        env=device, check=True, capture_output=True,
    )  # fmt: skip
    writer = own_key(place / ".local/share/outrider/bundle-key", make=False).public
    key = own_key(place / "release.key", make=True).public
    command = [
        sys.executable,
        str(bare_machine.ROOT / "scripts/stick.py"),
        "--package",
        str(DEB),
        "--output",
        str(place),
    ]
    command += ["--models", str(models), "--key", str(place / "release.key")]
    for more in bare_machine.debian_packages(CACHE, "minisign", "libsodium23"):
        command += ["--with", str(more)]
    made = subprocess.run(command, check=True, capture_output=True, text=True)
    return Path(made.stdout.strip()), key, writer


@pytest.fixture(scope="module")
def machine(stick, tmp_path_factory):
    with (
        namespaces.lone() as alone,
        bare_machine.bare_machine(tmp_path_factory.mktemp("bare"), CACHE, alone) as machine,
        contextlib.closing(SilentResolver(alone)) as resolver,
    ):
        machine.path("/etc/resolv.conf").write_text("nameserver 127.0.0.1\n")
        machine.path(STICK).mkdir()
        os.link(stick[0], machine.path(f"{STICK}/{stick[0].name}"))
        yield machine, resolver


def test_from_the_stick_to_an_answer(machine, stick):
    machine, resolver = machine
    path, key, writer = stick
    folder = f"{STICK}/{path.stem}"

    def typed(line, *, fails=False):
        done = machine.run("sh", "-c", f"cd {folder} 2>/dev/null; {line}", check=False)
        said = (done.stdout + done.stderr).rstrip()
        print(f"# {line}\n{said}" if said else f"# {line}")
        assert (done.returncode != 0) is fails, said
        return said

    print()
    assert typed("sed -n 's/ *\\(.*\\):.*/\\1/p' /proc/net/dev") == "lo"
    typed("timeout 3 getent hosts deb.debian.org", fails=True)
    asked = len(resolver.asked)
    assert asked > 0
    typed(f"tar -C {STICK} -xf {STICK}/{path.name} && ls -1 {folder}")
    if machine.path(folder).joinpath("READ-ME.txt").exists() and list(machine.path(folder).glob("minisign*.deb")):
        typed("dpkg -i libsodium23*.deb minisign*.deb | grep -c '^Setting up'")
        assert "verified" in typed(f"minisign -V -P {key} -m SHA256SUMS")
    typed("sha256sum -c SHA256SUMS")
    typed("dpkg -i outrider_*.deb 2>&1 | tail -2")
    machine.path("/etc/outrider/outrider.toml").write_text(CONFIG)
    typed("outrider models list | grep smollm2-135m | tr -s ' '")
    told = machine.start_service()
    assert "READY=1" in told
    print("(the service program is started as user outrider, with nothing but its unit's environment: READY=1)")
    assert "fingerprint" in typed("outrider bundle import models.outrider < /dev/null", fails=True)
    typed(f"outrider bundle import models.outrider --trust {writer}")
    refused = typed("cp models.outrider /root && outrider bundle import /root/models.outrider", fails=True)
    assert "/root/models.outrider: Permission denied; give user outrider access to it" in refused
    assert "Paris" in typed('outrider ask "What is the capital of France?"')
    assert "pending: 1" in typed("outrider queue list")
    assert f"{path.stem}" in typed(f"outrider update SHA256SUMS --check --key {key}")
    print(f"(the resolver was asked {len(resolver.asked)} times and answered none)")
    assert len(resolver.asked) > asked
    assert machine.stop_service() == 0
