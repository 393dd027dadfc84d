"""Build what the engine is measured against: llama-server, llama-bench and llama-cpp-python's own server.

The sources are those inside the sdist of the very llama-cpp-python that this tree uses, so peer
and engine are one commit of llama.cpp. llama-server and llama-bench are built with upstream's
default options (only what would need the network, and the tests, is off) and never linked against
our libraries. llama-cpp-python's server runs in a virtual environment of its own.

    python scripts/llama_peer.py            builds once; prints the folder on stdout
    python scripts/llama_peer.py --find     prints the folder, or says that it is not built

Needs the standard library only. Exit code 1 with one clear line when it cannot be built or found.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import llama_wheel
from llama_wheel import VERSION, CannotBuildError, say

COMMAND = "python scripts/llama_peer.py"
OFFLINE = ("-DLLAMA_OPENSSL=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF")
NOT_NEEDED = ("-DLLAMA_BUILD_TESTS=OFF",)
# The executables find their libraries beside themselves, wherever the folder is moved to.
OPTIONS = ("-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON", *OFFLINE, *NOT_NEEDED)
TARGETS = ("llama-server", "llama-bench")
SERVER, BENCH, PYTHON = "bin/llama-server", "bin/llama-bench", "python/bin/python"


def peers() -> Path:
    """Return the folder of the peers, building what is missing. Raises CannotBuildError."""
    folder = peer_folder()
    if not built(folder / "bin", TARGETS):
        build_llama_cpp(folder)
    if not (folder / "python" / ".ready").exists():
        make_python_server(folder / "python")
    return folder


def find() -> Path:
    """Return the folder of the peers. Raises CannotBuildError, with the command, when one is missing."""
    folder = peer_folder()
    if not built(folder / "bin", TARGETS) or not (folder / "python" / ".ready").exists():
        raise CannotBuildError(f"llama-server is not built here (about 15 minutes, once); run: {COMMAND}")
    return folder


def peer_folder() -> Path:
    """Return the (existing) folder for this version, these options and this processor."""
    text = f"{VERSION}\n{OPTIONS}\n{llama_wheel.machine_text('native')}"
    return llama_wheel.cache_folder("peers", hashlib.sha256(text.encode()).hexdigest()[:12])


def built(folder: Path, names: tuple[str, ...]) -> bool:
    return all((folder / name).exists() for name in names)


def build_llama_cpp(folder: Path) -> None:
    """Build the executables in a scratch folder, then move them into place together."""
    llama_wheel.ensure_compiler()
    if shutil.which("cmake") is None:
        raise CannotBuildError("llama-server needs cmake; install it, for example: python -m pip install cmake")
    say(f"building llama-server and llama-bench, about 15 minutes (once; kept in {folder})")
    log = folder / "build.log"
    log.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as scratch:
        source = fetch(Path(scratch), log=log)
        build = Path(scratch) / "build"
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        llama_wheel.run_logged(["cmake", "-S", str(source), "-B", str(build), *generator, *OPTIONS], {}, log=log)
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(llama_wheel.jobs())
        command = ["cmake", "--build", str(build), "--parallel", jobs, "--target", *TARGETS]
        elapsed = llama_wheel.run_logged(command, {}, log=log)
        shutil.rmtree(folder / "bin", ignore_errors=True)
        (build / "bin").rename(folder / "bin")
    say(f"llama-server is built, {elapsed}")


def fetch(folder: Path, *, log: Path) -> Path:
    """Download the sdist through pip and unpack it; return the folder of llama.cpp in it."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python"]
    llama_wheel.run_logged([*command, "--dest", str(folder), f"llama-cpp-python=={VERSION}"], {}, log=log)
    archive = next(folder.glob("llama_cpp_python-*.tar.gz"))
    with tarfile.open(archive) as sources:
        if hasattr(tarfile, "data_filter"):  # Python from 3.11.4 on
            sources.extraction_filter = tarfile.data_filter
        sources.extractall(folder)
    return folder / archive.name.removesuffix(".tar.gz") / "vendor" / "llama.cpp"


def make_python_server(folder: Path) -> None:
    """Make the virtual environment of llama-cpp-python's server, around our own wheel."""
    say("making the environment of llama-cpp-python's own server")
    wheel = llama_wheel.wheel("native")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, stdout=sys.stderr)
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", f"{wheel}[server]"]
    if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
        raise CannotBuildError(f"this failed: {' '.join(command)}")
    (folder / ".ready").touch()


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the peers of the benchmarks.")
    parser.add_argument("--find", action="store_true", help="build nothing; say whether they are there")
    chosen = parser.parse_args()
    return llama_wheel.printed(lambda: find() if chosen.find else peers())


if __name__ == "__main__":
    sys.exit(main())
