"""Make a Python environment of its own, in the user's cache, for what the product is measured against or tried with.

    python scripts/peer_environment.py torch        sentence-transformers on torch: what the encoders are measured against
    python scripts/peer_environment.py providers    execution providers beside onnxruntime: what the choice of devices is tried with
    python scripts/peer_environment.py openvino     onnxruntime as built with OpenVINO: the same trial on any processor
    python scripts/peer_environment.py NAME --find  makes nothing; says whether it is there

Prints the path of its Python on stdout. Needs the standard library only. Exit code 1 with one
clear line when it cannot be made or found.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

import llama_wheel
from llama_wheel import CannotBuildError, say

PINS = {
    "torch": ("torch==2.13.0", "sentence-transformers>=5,<6", "transformers==4.57.6", "numpy>=2,<3"),
    "providers": (
        "onnxruntime==1.31.1",
        "onnxruntime-ep-openvino==1.8.1",
        "onnxruntime-qnn==2.7.0",
        "tokenizers>=0.23,<0.24",
        "msgspec>=0.20,<1",
        "psutil>=7,<8",
        "numpy>=2,<3",
    ),
    # OpenVINO inside a build of onnxruntime of its own: the plugin of 'providers' offers Intel hardware only.
    "openvino": (
        "onnxruntime-openvino==1.24.1",
        "tokenizers>=0.23,<0.24",
        "msgspec>=0.20,<1",
        "psutil>=7,<8",
        "numpy>=2,<3",
    ),
}


def folder(name: str) -> Path:
    """Return the (existing) folder for the pins of this name."""
    digest = hashlib.sha256("\n".join(PINS[name]).encode()).hexdigest()[:12]
    return llama_wheel.cache_folder("peers", f"{name}-{digest}")


def find(name: str) -> Path:
    """Return the Python of the environment. Raises CannotBuildError, with the command, when it is not made."""
    if not (folder(name) / ".ready").exists():
        raise CannotBuildError(f"there is no environment {name} here; run: python scripts/peer_environment.py {name}")
    return folder(name) / "bin" / "python"


def make(name: str) -> Path:
    """Return the Python of the environment, made when it is not there. Raises CannotBuildError."""
    place = folder(name)
    if not (place / ".ready").exists():
        say(f"making the environment {name}, some minutes and up to 1.5 GB (once; kept in {place})")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True, stdout=sys.stderr)
        command = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", *PINS[name]]
        if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
            raise CannotBuildError(f"this failed: {' '.join(command)}")
        (place / ".ready").touch()
    return find(name)


def main() -> int:
    parser = argparse.ArgumentParser(description="Make an environment for benchmarks and trials.")
    parser.add_argument("name", choices=PINS)
    parser.add_argument("--find", action="store_true", help="make nothing; say whether it is there")
    chosen = parser.parse_args()
    return llama_wheel.printed(lambda: find(chosen.name) if chosen.find else make(chosen.name))


if __name__ == "__main__":
    sys.exit(main())
