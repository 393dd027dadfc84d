"""Build the wheel of llama-cpp-python once, into a folder of its own.

Only sources are published, so every machine builds. Two kinds:

native      made for this very processor: the fastest to build; for development and tests
portable    all processor variants, chosen at run time; for the package that users install

A native wheel must never reach another machine, and pip's cache does not know the difference:
therefore the build bypasses it, and the folder's name says what the wheel was made for.

    python scripts/llama_wheel.py [--portable]     prints the path of the wheel on stdout

Needs the standard library only. Exit code 1 with one clear line when it cannot be built.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

VERSION = "0.3.36"
SOURCES = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"  # SHA-256 of the published sources
CMAKE_ARGS = {
    "native": "-DGGML_NATIVE=ON",
    "portable": "-DGGML_NATIVE=OFF -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON",
}
MINUTES = {"native": 10, "portable": 20}
COMPILER_PACKAGES = ("build-essential",)
MEMORY_PER_JOB = 1 << 30  # bytes; the largest sources need about this much
HEARTBEAT_S = 15.0
STEP = re.compile(r"^\s*\[(\d+)/(\d+)\]")


class CannotBuildError(Exception):
    """One line: what is missing and what to do."""


def wheel(kind: str = "native") -> Path:
    """Return the wheel, building it first where there is none. Raises CannotBuildError."""
    folder = wheel_folder(kind)
    if found := sorted(folder.glob("llama_cpp_python-*.whl")):
        return found[-1]
    ensure_compiler()
    say(f"building llama.cpp, about {MINUTES[kind]} minutes (once; kept in {folder})")
    with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as scratch:
        build(kind, Path(scratch), log=folder / "build.log")
        made = next(Path(scratch).glob("llama_cpp_python-*.whl"))
        return made.rename(folder / made.name)


def wheel_folder(kind: str) -> Path:
    """Return the (existing) folder for wheels of this kind on this machine."""
    key = hashlib.sha256(f"{VERSION}\n{CMAKE_ARGS[kind]}\n{machine_text(kind)}".encode()).hexdigest()[:12]
    return cache_folder("wheels", f"{kind}-{key}")


def cache_folder(*names: str) -> Path:
    """Return the (existing, writable) folder of these names in the user's cache, else below this tree."""
    places = [Path(__file__).resolve().parents[1] / "build" / "cache"]
    with contextlib.suppress(RuntimeError):  # a user without a home
        places.insert(0, Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"))
    for place in places:
        folder = place.joinpath("outrider", *names)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise CannotBuildError(f"no place for what is built: {places[0]} is not writable; set XDG_CACHE_HOME")


def machine_text(kind: str) -> str:
    """Return what a wheel of this kind depends on: for a native one also the processor's abilities."""
    text = f"{platform.system()} {platform.machine()} {platform.libc_ver()[0]}"
    return f"{text}\n{processor()}" if kind == "native" else text


def processor() -> str:
    """Return the processor's abilities, sorted, as the system tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        done = subprocess.run(command, capture_output=True, text=True, check=False) if shutil.which("sysctl") else None
        return done.stdout.strip() if done and done.stdout.strip() else platform.processor()
    wanted = {"flags", "Features", "CPU implementer", "CPU part"}
    seen = {line.partition(":")[0].strip(): line.partition(":")[2] for line in lines}
    return "\n".join(f"{name}: {' '.join(sorted(seen[name].split()))}" for name in sorted(wanted & seen.keys()))


def ensure_compiler() -> None:
    """Find a C and a C++ compiler; install them as root, else raise with the exact command."""
    if has_compiler():
        return
    if shutil.which("apt-get") and os.geteuid() == 0:
        say("no C++ compiler here; installing " + " ".join(COMPILER_PACKAGES))
        apt_install(*COMPILER_PACKAGES)
    if not has_compiler():
        raise CannotBuildError(f"llama.cpp needs a C and a C++ compiler; run: {compiler_command()}")


def has_compiler() -> bool:
    c = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    cpp = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    return bool(c and cpp)


def compiler_command() -> str:
    """Return what the user can type to get the compilers."""
    if shutil.which("apt-get"):
        return f"sudo apt-get install -y {' '.join(COMPILER_PACKAGES)}"
    if platform.system() == "Darwin":
        return "xcode-select --install"
    if shutil.which("dnf"):
        return "sudo dnf install -y gcc gcc-c++"
    if shutil.which("apk"):
        return "sudo apk add build-base linux-headers"
    return "your system's package manager for gcc and g++"


def apt_install(*packages: str) -> None:
    """Install Debian packages as root. Raises CannotBuildError with the command that failed."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    for command in (["apt-get", "update", "-qq"], install):
        done = subprocess.run(command, stdout=subprocess.DEVNULL, env=environment, check=False)
        if done.returncode and command is install:
            raise CannotBuildError(f"this failed: {' '.join(command)}")


def build(kind: str, folder: Path, *, log: Path) -> None:
    """Run pip in a child and show that it goes on. Raises CannotBuildError with the end of its log."""
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-cache-dir"]
    wanted = folder / "wanted.txt"
    wanted.write_text(f"llama-cpp-python=={VERSION} --hash=sha256:{SOURCES}\n", encoding="utf-8")
    command += ["--no-binary", "llama-cpp-python", "--wheel-dir", str(folder), "--require-hashes", "-r", str(wanted)]
    environment = {
        "CMAKE_ARGS": CMAKE_ARGS[kind],
        "CMAKE_BUILD_PARALLEL_LEVEL": os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(jobs()),
        "PYTHONUNBUFFERED": "1",
    }
    log.unlink(missing_ok=True)
    elapsed = run_logged(command, environment, log=log)
    say(f"llama.cpp is built, {elapsed}")


def run_logged(command: list[str], environment: dict[str, str], *, log: Path) -> str:
    """Run a long command, append its output to the log, show how far it is; return how long it took.

    Raises CannotBuildError with the end of its log.
    """
    with (
        Heartbeat() as beat,
        log.open("a", encoding="utf-8") as record,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            text=True,
            errors="replace",
        ) as child,
    ):
        assert child.stdout is not None
        try:
            for line in child.stdout:
                record.write(line)
                beat.seen(line)
        except BaseException:
            child.terminate()
            raise
    if child.returncode:
        tail = log.read_text(encoding="utf-8").splitlines()[-25:]
        raise CannotBuildError("\n".join([*tail, f"llama.cpp could not be built; the whole log is {log}"]))
    return beat.elapsed()


class Heartbeat:
    """Says every HEARTBEAT_S how far the build is, also while one step takes long."""

    def __init__(self) -> None:
        self._step = "fetching and configuring"
        self._started = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def seen(self, line: str) -> None:
        """Learn the step from one line of the build."""
        if found := STEP.match(line):
            self._step = f"[{found[1]}/{found[2]}]"

    def elapsed(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        return f"{minutes} min {seconds:02} s"

    def _run(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            say(f"  building llama.cpp: {self._step}, {self.elapsed()}")


def jobs() -> int:
    """Return how many compilers to run at once: the cores, less where memory is short."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return cores
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(cores, memory // MEMORY_PER_JOB))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def printed(work: Callable[[], object]) -> int:
    """Print what the work returns; return the exit code, 1 with one line where it cannot be done."""
    try:
        print(work())
    except CannotBuildError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the wheel of llama-cpp-python.")
    parser.add_argument("--portable", action="store_true", help="for all processors, chosen at run time")
    chosen = parser.parse_args()
    return printed(lambda: wheel("portable" if chosen.portable else "native"))


if __name__ == "__main__":
    sys.exit(main())
