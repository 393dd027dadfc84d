"""Make the environment of sentence-transformers on torch: what the encoders are measured against.

A virtual environment of its own in the user's cache; nothing of it is imported here, and the
product never uses it.

    python scripts/torch_peer.py            makes it once; prints the path of its Python on stdout
    python scripts/torch_peer.py --find     prints the path, or says that it is not made

Needs the standard library only. Exit code 1 with one clear line when it cannot be made or found.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

import llama_wheel
from llama_wheel import CannotBuildError, say

COMMAND = "python scripts/torch_peer.py"
PINS = ("torch==2.13.0", "sentence-transformers>=5,<6", "transformers==4.57.6", "numpy>=2,<3")


def folder() -> Path:
    """Return the (existing) folder for these pins."""
    return llama_wheel.cache_folder("peers", "torch-" + hashlib.sha256("\n".join(PINS).encode()).hexdigest()[:12])


def find() -> Path:
    """Return the Python of the environment. Raises CannotBuildError, with the command, when it is not made."""
    if not (folder() / ".ready").exists():
        raise CannotBuildError(f"sentence-transformers is not installed here (about 1.3 GB, once); run: {COMMAND}")
    return folder() / "bin" / "python"


def make() -> Path:
    """Return the Python of the environment, made when it is not there. Raises CannotBuildError."""
    place = folder()
    if not (place / ".ready").exists():
        say(f"making the environment of sentence-transformers, a few minutes (once; kept in {place})")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True, stdout=sys.stderr)
        command = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", *PINS]
        if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
            raise CannotBuildError(f"this failed: {' '.join(command)}")
        (place / ".ready").touch()
    return find()


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the environment of sentence-transformers.")
    parser.add_argument("--find", action="store_true", help="make nothing; say whether it is there")
    chosen = parser.parse_args()
    try:
        print(find() if chosen.find else make())
    except CannotBuildError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
