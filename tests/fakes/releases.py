"""Releases of this very program, run from source, and of broken ones."""

import hashlib
import json
import sys
import tarfile
from pathlib import Path

from agent.models.minisign import SecretKey

ROOT = Path(__file__).resolve().parents[2]
KEY = SecretKey(b"releases", b"r" * 32)
RUNS = f'PYTHONPATH="{ROOT}${{PYTHONPATH:+:$PYTHONPATH}}" exec {sys.executable} -m agent "$@"'


def program(version: str, *, unless: str = "false") -> str:
    """Return a shell script: it tells that version, fails where the condition holds, else is the program itself."""
    return f"""#!/bin/sh
case "$*" in --version) echo "outrider, version {version}"; exit 0 ;; esac
here=$(dirname "$0")
if {unless}; then echo "broken on purpose" >&2; exit 3; fi
{RUNS}
"""


def folder(place: Path, script: str) -> Path:
    """Write a program's folder with its bill of materials."""
    made = place / "outrider"
    (made / "_internal").mkdir(parents=True)
    (made / "outrider").write_text(script)
    (made / "outrider").chmod(0o755)
    (made / "_internal" / "data").write_text("data")
    files = [path for path in made.rglob("*") if path.is_file()]
    listed = [
        {
            "type": "file",
            "name": str(path.relative_to(made)),
            "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}],
        }
        for path in files
    ]
    bill = {"metadata": {"component": {"components": listed}}, "components": []}
    (made / "sbom.cdx.json").write_text(json.dumps(bill))
    return made


def archive(place: Path, made: Path, key: SecretKey = KEY) -> Path:
    """Pack the folder and sign it."""
    path = place / "outrider-9.0.0-linux-x86_64.tar.xz"
    with tarfile.open(path, "w:xz", preset=0) as writer:
        writer.add(made, "outrider")
    sign(path, key)
    return path


def sign(path: Path, key: SecretKey = KEY) -> None:
    path.with_name(path.name + ".minisig").write_text(key.sign(path.read_bytes(), path.name))
