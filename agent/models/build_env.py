"""An isolated Python environment for what needs torch: made on request, pinned, removed on request.

``<data dir>/build-envs/checkpoints`` holds a virtual environment, the sources of llama.cpp's
converter and, written last, ``ready.json``. Nothing of it is ever imported here: programs in it
are run as children. The converter is that of the very llama.cpp which answers here, out of the
source distribution of llama-cpp-python, known by its SHA-256.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec

from agent.errors import DiskFull, EngineFailed, InvalidRequest, WrongState
from agent.models.blobs import write_durably
from agent.models.holding import held

FOLDER = "build-envs"
PINS = (
    "torch==2.13.0",
    "transformers==4.57.6",
    "huggingface-hub==0.36.2",
    "tokenizers==0.22.2",
    "safetensors",
    "sentencepiece<0.3",
    "protobuf<5",
    "numpy>=2,<3",
    "pyyaml",
    "tqdm",
    "requests",
)
# llama-cpp-python -> SHA-256 of its source distribution.
SOURCES = {"0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"}
SIZE_TEXT = "about 1.4 GB on disk; on Linux, more where the package index offers torch only with CUDA"
_NEEDED = 3 << 30  # bytes free: wheels and what they unpack to
_WANTED = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/", "LICENSE")
_PYTHONS = ("python3.13", "python3.12", "python3.11", "python3", "python")

Say = Callable[[str], None]


class Ready(msgspec.Struct, frozen=True):
    """What the environment was made of."""

    pins: tuple[str, ...]
    sources: str  # SHA-256


class BuildEnvironment:
    """The environment of one data directory."""

    def __init__(self, data_path: Path) -> None:
        self.root = data_path / FOLDER / "checkpoints"

    @property
    def python(self) -> Path:
        return self.root / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def converter(self) -> Path:
        return self.root / "llama.cpp" / "convert_hf_to_gguf.py"

    @property
    def ready(self) -> bool:
        """Whether it is whole and of this program's pins."""
        try:
            found = msgspec.json.decode((self.root / "ready.json").read_bytes(), type=Ready)
        except (OSError, msgspec.DecodeError):
            return False
        return found == _wanted()

    def require(self) -> None:
        """Raise WrongState with what to do when it is not there."""
        if not self.ready:
            raise WrongState(
                "a Hugging Face checkpoint is converted in an environment of its own, which is not there: "
                f"make it with `outrider quantize --setup` ({SIZE_TEXT}), or convert on another machine "
                "and give the GGUF file"
            )

    def make(self, say: Say, *, offline: bool, find_links: Path | None) -> None:
        """Make it anew. Minutes. Raises WrongState, InvalidRequest, DiskFull, EngineFailed with the log's end."""
        if offline and find_links is None:
            raise InvalidRequest(
                "--offline needs --find-links with a folder of wheels and the source of llama-cpp-python"
            )
        python = find_python()
        self.root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = self.root.with_name(f"{self.root.name}.lock")
        with held(lock, "the environment is being made by another call; wait for it"):
            self._make(python, say, offline=offline, find_links=find_links)

    def _make(self, python: Path, say: Say, *, offline: bool, find_links: Path | None) -> None:
        self.remove()
        self.root.mkdir(mode=0o700)
        if shutil.disk_usage(self.root).free < _NEEDED:
            raise DiskFull(f"{self.root} needs {_NEEDED >> 30} GiB free while it is made")
        index = ["--no-index"] if offline else []
        links = ["--find-links", str(find_links)] if find_links else []
        pip = [str(self.python), "-m", "pip", "--disable-pip-version-check", "--no-input"]
        say("making the environment ...")
        self._run([str(python), "-m", "venv", str(self.root / "venv")])
        say("fetching the converter of llama.cpp ...")
        self._unpack(self._source([*pip, "download", "--no-deps", "-d", str(self.root), *index, *links], find_links))
        say(f"installing torch and transformers ({SIZE_TEXT}) ...")
        self._run([*pip, "install", *index, *links, *PINS])
        write_durably(self.root / "ready.json", msgspec.json.encode(_wanted()))

    def remove(self) -> bool:
        """Remove it; return whether there was anything."""
        there = self.root.exists()
        (self.root / "ready.json").unlink(missing_ok=True)
        shutil.rmtree(self.root, ignore_errors=True)
        return there

    def _source(self, download: Sequence[str], find_links: Path | None) -> Path:
        """Return the source distribution, from the folder of wheels when it is there."""
        name = f"llama_cpp_python-{version('llama-cpp-python')}.tar.gz"
        if find_links and (find_links / name).is_file():
            return find_links / name
        self._run([*download, "--no-binary", "llama-cpp-python", f"llama-cpp-python=={version('llama-cpp-python')}"])
        return self.root / name

    def _unpack(self, archive: Path) -> None:
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != _wanted().sources:
            raise InvalidRequest(
                f"{archive} is not the source of llama-cpp-python that is known here: SHA-256 {digest}"
            )
        with tarfile.open(archive) as sources:
            for member in sources:
                name = member.name.partition("/vendor/llama.cpp/")[2]
                if name.startswith(_WANTED):
                    member.name = name
                    sources.extract(member, self.root / "llama.cpp", filter="data")
        if archive.parent == self.root:
            archive.unlink()

    def _run(self, command: Sequence[str]) -> None:
        log = self.root / "setup.log"
        with log.open("ab") as record:
            status = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=record, stderr=record, env=clean_environment(), check=False
            ).returncode
        if status:
            end = log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:]
            raise EngineFailed(f"`{' '.join(command[1:4])}` failed: {' | '.join(end)}; the whole log is {log}")


def _wanted() -> Ready:
    own = version("llama-cpp-python")
    if own not in SOURCES:
        raise WrongState(f"no source of llama-cpp-python {own} is known here: checkpoints cannot be converted")
    return Ready(PINS, SOURCES[own])


def clean_environment() -> dict[str, str]:
    """Return the environment for programs of the build environment: nothing of ours leaks in, no hub is asked."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return kept | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def find_python() -> Path:
    """Return a Python of 3.11 or newer that can make environments. Raises WrongState with what to do."""
    candidates = [] if getattr(sys, "frozen", False) else [sys.executable]
    candidates += [found for name in _PYTHONS if (found := shutil.which(name))]
    probe = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"
    for python in candidates:
        if subprocess.run([python, "-c", probe], capture_output=True, check=False).returncode == 0:
            return Path(python)
    raise WrongState("no Python of 3.11 or newer with venv is here; on Debian: apt install python3 python3-venv")
