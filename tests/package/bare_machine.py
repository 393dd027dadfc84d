"""A machine that has never heard of Python: Debian's smallest root, in a network namespace without a way out."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from fakes.namespaces import Namespace

SUITE = "bookworm"
PATIENCE_S = 60.0
ROOT = Path(__file__).resolve().parents[2]
SERVICE = "/usr/lib/systemd/system/outrider.service"
DATA = "/var/lib/outrider"


def built_package(pattern: str = "outrider*_*.deb") -> Path | None:
    """Return the package that was built last, the one with the demo model before the other."""
    given = os.environ.get("OUTRIDER_DEB")
    if given and Path(given).match(pattern):
        return Path(given)
    found = sorted((ROOT / "dist").rglob(pattern), key=lambda path: ("demo" in path.name, path.stat().st_mtime))
    return found[-1] if found else None


def why_not() -> str:
    """Return why a bare machine cannot be made here, or nothing."""
    if os.geteuid() != 0:
        return "a chroot needs root"
    for program in ("debootstrap", "chroot", "mount", "dpkg-deb"):
        if shutil.which(program) is None:
            return f"{program} is missing (apt-get install -y debootstrap)"
    return ""


def root_archive(cache: Path, suite: str = SUITE) -> Path:
    """Return an archive of the bare root of a release, fetched once."""
    archive = cache / f"{suite}-minbase.tar"
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        fresh = cache / f"{suite}-{os.getpid()}"
        try:
            subprocess.run(["debootstrap", "--variant=minbase", suite, str(fresh)], check=True, capture_output=True)
            partial = archive.with_suffix(".part")
            subprocess.run(["tar", "-C", str(fresh), "-cf", str(partial), "."], check=True)
            partial.rename(archive)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return archive


def debian_packages(cache: Path, *names: str) -> list[Path]:
    """Return packages of Debian itself, fetched once; none where they cannot be fetched."""
    for name in names:
        if not list(cache.glob(f"{name}_*.deb")):
            subprocess.run(["apt-get", "download", "-qq", name], cwd=cache, check=False, capture_output=True)
    found = [path for name in names for path in sorted(cache.glob(f"{name}_*.deb"))]
    return found if len(found) >= len(names) else []


class BareMachine:
    """A root folder, run inside a namespace."""

    def __init__(self, root: Path, namespace: Namespace) -> None:
        self.root = root
        self.namespace = namespace
        self.service: subprocess.Popen[bytes] | None = None

    def path(self, inside: str) -> Path:
        """Return where a path of the machine is, seen from outside."""
        return self.root / inside.lstrip("/")

    def command(self, argv: Sequence[str], *, user: str = "root", environment: Sequence[str] = ()) -> list[str]:
        home = "HOME=/root" if user == "root" else "HOME=/nonexistent"
        clean = ["/usr/bin/env", "-i", home, "PATH=/usr/sbin:/usr/bin:/sbin:/bin", *environment]
        return [*self.namespace.prefix, "chroot", f"--userspec={user}", str(self.root), *clean, *argv]

    def run(self, *argv: str, check: bool = True, **options) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(self.command(argv, **options), capture_output=True, text=True, check=False, timeout=300)
        if check and done.returncode:
            raise AssertionError(f"{argv} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def start_service(self) -> list[str]:
        """Start what the unit starts, as its user, with nothing but its environment; return what it told its manager."""
        unit = self.path(SERVICE).read_text()
        values = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line and not line.startswith("#"))
        notify = self.path("/tmp/notify")
        notify.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.bind(str(notify))
            notify.chmod(0o777)
            told.settimeout(PATIENCE_S)
            environment = [*values["Environment"].split(), "NOTIFY_SOCKET=/tmp/notify"]
            log = self.path("/tmp/service.log").open("ab")
            command = self.command(values["ExecStart"].split(), user="outrider:outrider", environment=environment)
            self.service = subprocess.Popen(command, stdout=log, stderr=log)
            log.close()
            try:
                return told.recv(4096).decode().splitlines()
            except TimeoutError:
                raise AssertionError(f"the service is not ready:\n{self.log()}") from None

    def kill_service(self) -> None:
        self._daemon(signal.SIGKILL)

    def stop_service(self) -> int:
        self._daemon(signal.SIGTERM)
        return self.service.returncode

    def _daemon(self, number: int) -> None:
        # chroot and env replace themselves by the program: the pid is the daemon's own.
        self.service.send_signal(number)
        self.service.wait(PATIENCE_S)

    def log(self) -> str:
        return self.path("/tmp/service.log").read_text(errors="replace")[-3000:]


@contextlib.contextmanager
def bare_machine(folder: Path, cache: Path, namespace: Namespace, suite: str = SUITE) -> Iterator[BareMachine]:
    """Lay the root out in ``folder``; take its mounts away afterwards."""
    root = folder / "root"
    root.mkdir()
    subprocess.run(["tar", "-C", str(root), "-xf", str(root_archive(cache, suite))], check=True)
    subprocess.run(["mount", "-t", "proc", "proc", str(root / "proc")], check=True)
    machine = BareMachine(root, namespace)
    try:
        yield machine
    finally:
        if machine.service is not None and machine.service.poll() is None:
            machine.service.kill()
            machine.service.wait()
        time.sleep(0.2)
        subprocess.run(["umount", "--lazy", str(root / "proc")], check=False)


def repacked(deb: Path, folder: Path, version: str) -> Path:
    """Return the same package under another version: an upgrade, or a downgrade, of the same program."""
    tree = folder / f"tree-{version}"
    subprocess.run(["dpkg-deb", "-R", str(deb), str(tree)], check=True)
    old = next(line for line in (tree / "DEBIAN/control").read_text().splitlines() if line.startswith("Version:"))
    was = old.split()[1].rpartition("-")[0]
    for name in ("control", "preinst"):
        path = tree / "DEBIAN" / name
        path.write_text(path.read_text().replace(was, version))
    made = folder / f"outrider_{version}.deb"
    subprocess.run(["dpkg-deb", "-Znone", "-b", str(tree), str(made)], check=True, capture_output=True)
    shutil.rmtree(tree)
    return made
