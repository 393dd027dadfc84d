"""Isolated Python environments for what needs torch: made on request, pinned, removed on request.

``<data dir>/build-envs/<name>`` holds a virtual environment and, written last, ``ready.json``.
Nothing of it is ever imported here: programs in it are run as children. There are several,
because the exporter of ONNX encoders and the builder of ONNX decoders want different transformers.
``checkpoints`` has the sources of llama.cpp's converter too: that of the very llama.cpp which
answers here, out of the source distribution of llama-cpp-python, known by its SHA-256.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import msgspec

from agent.errors import DiskFull, EngineFailed, InvalidRequest, WrongState
from agent.models.blobs import write_durably
from agent.models.holding import held

FOLDER = "build-envs"
EnvironmentName = Literal["checkpoints", "generation", "npu"]


class EnvironmentKind(msgspec.Struct, frozen=True, kw_only=True):
    """What one environment is for, and what is in it."""

    use: str  # for people: what is done in it
    pins: tuple[str, ...]
    size: str  # for people
    needed_bytes: int  # free: wheels and what they unpack to
    converter: bool = False  # whether llama.cpp's converter is a part


_TORCH_SIZE = "GB on disk; on Linux, more where the package index offers torch only with CUDA"
ENVIRONMENTS: dict[EnvironmentName, EnvironmentKind] = {
    "checkpoints": EnvironmentKind(
        use="Hugging Face checkpoints become GGUF or ONNX (by optimum)",
        pins=(
            "torch==2.13.0",
            "transformers==4.57.6",
            "huggingface-hub==0.36.2",
            "tokenizers==0.22.2",
            "optimum==2.1.0",
            "optimum-onnx==0.1.0",
            "onnx==1.23.2",
            "onnx-ir==1.1.0",
            "onnxruntime==1.31.1",
            "safetensors",
            "sentencepiece<0.3",
            "protobuf",
            "numpy>=2,<3",
            "pyyaml",
            "tqdm",
            "requests",
        ),
        size=f"about 1.4 {_TORCH_SIZE}",
        needed_bytes=3 << 30,
        converter=True,
    ),
    "generation": EnvironmentKind(
        use="Hugging Face checkpoints become ONNX models that write text (by the builder of onnxruntime-genai)",
        pins=(
            "torch==2.13.0",
            "transformers==5.23.0",
            "huggingface-hub==2.4.0",
            "tokenizers==0.23.3",
            "optimum==2.3.0",
            "onnx==1.23.2",
            "onnx-ir==1.1.0",
            "onnxruntime==1.31.1",
            "onnxruntime-genai==0.18.0",
            "safetensors",
            "sentencepiece<0.3",
            "numpy>=2,<3",
        ),
        size=f"about 1.3 {_TORCH_SIZE}",
        needed_bytes=3 << 30,
    ),
    "npu": EnvironmentKind(
        use="contexts for Qualcomm NPUs are compiled (onnxruntime-qnn; its libraries have Qualcomm's own licence)",
        pins=("onnxruntime==1.31.1", "onnxruntime-qnn==2.7.0", "numpy>=2,<3"),
        size="about 0.5 GB on disk",
        needed_bytes=1 << 30,
    ),
}
_EXTRA = ("torch", "transformers", "optimum", "onnx-ir", "onnxruntime-genai")  # what the extra `build` makes sure of
# llama-cpp-python -> SHA-256 of its source distribution.
SOURCES = {"0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"}
_WANTED = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/", "LICENSE")
_PYTHONS = ("python3.13", "python3.12", "python3.11", "python3", "python")

Say = Callable[[str], None]


class Ready(msgspec.Struct, frozen=True):
    """What the environment was made of."""

    pins: tuple[str, ...]
    sources: str = ""  # SHA-256 of what the converter came in


class BuildEnvironment:
    """One environment of one data directory."""

    def __init__(self, data_path: Path, name: EnvironmentName = "checkpoints") -> None:
        self.name = name
        self.kind = ENVIRONMENTS[name]
        self.root = data_path / FOLDER / name

    @property
    def python(self) -> Path:
        if self._here:
            return Path(sys.executable)
        return self.root / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def converter(self) -> Path:
        return self.root / "llama.cpp" / "convert_hf_to_gguf.py"

    @property
    def ready(self) -> bool:
        """Whether it is whole and of this program's pins."""
        return self._here or self.made

    @property
    def made(self) -> bool:
        """Whether it lies in the data directory."""
        try:
            found = msgspec.json.decode((self.root / "ready.json").read_bytes(), type=Ready)
        except (OSError, msgspec.DecodeError):
            return False
        return found == self._wanted()

    @property
    def _here(self) -> bool:
        """Whether this very Python has all of it: installed with the extra ``build``."""
        if getattr(sys, "frozen", False) or self.name != "generation":
            return False
        pins = dict(pin.split("==") for pin in self.kind.pins if "==" in pin)
        return all(_installed(name, pins[name]) for name in _EXTRA)

    def require(self) -> None:
        """Raise WrongState with what to do when it is not there."""
        if not self.ready:
            raise WrongState(
                f"{self.kind.use} in an environment of its own, which is not there: make it with "
                f"`outrider quantize --setup{self._option}` ({self.kind.size}; without a network with --offline and "
                "--find-links), or make the model on another machine and carry it over"
            )

    @property
    def _option(self) -> str:
        return "" if self.name == "checkpoints" else f" --environment {self.name}"

    def make(self, say: Say, *, offline: bool, find_links: Path | None) -> None:
        """Make it anew. Minutes. Raises WrongState, InvalidRequest, DiskFull, EngineFailed with the log's end."""
        self.require_wheels(offline=offline, find_links=find_links)
        python = find_python()
        self.root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = self.root.with_name(f"{self.root.name}.lock")
        with held(lock, "the environment is being made by another call; wait for it"):
            self._make(python, say, offline=offline, find_links=find_links)

    def _make(self, python: Path, say: Say, *, offline: bool, find_links: Path | None) -> None:
        self.remove()
        self.root.mkdir(mode=0o700)
        if shutil.disk_usage(self.root).free < self.kind.needed_bytes:
            raise DiskFull(f"{self.root} needs {self.kind.needed_bytes >> 30} GiB free while it is made")
        index = ["--no-index"] if offline else []
        links = ["--find-links", str(find_links)] if find_links else []
        own = self.root / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        pip = [str(own), "-m", "pip", "--disable-pip-version-check", "--no-input"]
        say("making the environment ...")
        self._run([str(python), "-m", "venv", str(self.root / "venv")])
        if self.kind.converter:
            say("fetching the converter of llama.cpp ...")
            download = [*pip, "download", "--no-deps", "-d", str(self.root), *index, *links]
            self._unpack(self._source(download, find_links))
        say(f"installing {', '.join(pin.partition('=')[0] for pin in self.kind.pins[:2])} ... ({self.kind.size})")
        self._run([*pip, "install", *index, *links, *self.kind.pins])
        write_durably(self.root / "ready.json", msgspec.json.encode(self._wanted()))

    def require_wheels(self, *, offline: bool, find_links: Path | None) -> None:
        """Raise InvalidRequest where there is nothing that it could be made of."""
        if offline and find_links is None:
            more = " and the source of llama-cpp-python" if self.kind.converter else ""
            raise InvalidRequest(f"--offline needs --find-links with a folder of wheels{more}")

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
        if digest != self._wanted().sources:
            raise InvalidRequest(
                f"{archive} is not the source of llama-cpp-python that is known here: SHA-256 {digest}"
            )
        with tarfile.open(archive) as sources:
            for member in sources:
                name = member.name.partition("/vendor/llama.cpp/")[2]
                if name.startswith(_WANTED) and (content := sources.extractfile(member)) is not None:
                    # Written by hand: Python before 3.11.4, as Debian 12 has it, extracts nothing safely.
                    target = self.root / "llama.cpp" / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with content, target.open("wb") as writer:
                        shutil.copyfileobj(content, writer)
        if archive.parent == self.root:
            archive.unlink()

    def _wanted(self) -> Ready:
        if not self.kind.converter:
            return Ready(self.kind.pins)
        own = version("llama-cpp-python")
        if own not in SOURCES:
            raise WrongState(f"no source of llama-cpp-python {own} is known here: checkpoints cannot be converted")
        return Ready(self.kind.pins, SOURCES[own])

    def _run(self, command: Sequence[str]) -> None:
        log = self.root / "setup.log"
        with log.open("ab") as record:
            status = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=record, stderr=record, env=clean_environment(), check=False
            ).returncode
        if status:
            end = log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:]
            raise EngineFailed(f"`{' '.join(command[1:4])}` failed: {' | '.join(end)}; the whole log is {log}")


def _installed(name: str, wanted: str) -> bool:
    try:
        return version(name).partition("+")[0] == wanted
    except importlib.metadata.PackageNotFoundError:
        return False


def clean_environment() -> dict[str, str]:
    """Return the environment for programs of the build environment: nothing of ours leaks in, no hub is asked."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return kept | {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }


def find_python() -> Path:
    """Return a Python of 3.11 or newer that can make environments. Raises WrongState with what to do."""
    candidates = [] if getattr(sys, "frozen", False) else [sys.executable]
    candidates += [found for name in _PYTHONS if (found := shutil.which(name))]
    probe = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"
    for python in candidates:
        if subprocess.run([python, "-c", probe], capture_output=True, check=False).returncode == 0:
            return Path(python)
    raise WrongState("no Python of 3.11 or newer with venv is here; on Debian: apt install python3 python3-venv")
