"""A Hugging Face checkpoint on disk: looked at without running anything of it, converted in a child."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import ModelRejected

# Class in config.json -> architecture of llama.cpp. Only those whose logits were seen to be those of the checkpoint.
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
_LONGEST_HEADER = 100 << 20
_LONGEST_CONFIG = 1 << 20
_TYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What the files say."""

    architecture: str
    parameters: int
    bytes: int
    kind: str  # f32, f16 or bf16: what a GGUF file must have to lose nothing
    files: tuple[Path, ...]  # that the conversion reads


def look(folder: Path) -> Checkpoint:
    """Return what a checkpoint is. Raises ModelRejected with what is wrong."""
    config = _json(folder / "config.json")
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if name not in ARCHITECTURES:
        raise ModelRejected(f"{folder}: {str(name)[:80]} is not converted; {', '.join(ARCHITECTURES)} are")
    tokenizer = folder / "tokenizer_config.json"
    if "auto_map" in config or (tokenizer.exists() and "auto_map" in _json(tokenizer)):
        raise ModelRejected(f"{folder} brings code of its own (auto_map), which is never run here")
    if config.get("quantization_config"):
        raise ModelRejected(f"{folder} is quantized already; convert the original")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelRejected(f"{folder} holds no safetensors; weights in pickled files are never loaded")
    types: dict[str, int] = {}
    for path in weights:
        for kind, count in _tensors(path):
            types[kind] = types.get(kind, 0) + count
    if unknown := types.keys() - _TYPES.keys():
        raise ModelRejected(
            f"{folder} has tensors of type {', '.join(sorted(unknown))}; {', '.join(_TYPES)} are converted"
        )
    # Mixed halves have no common 16-bit type without loss.
    kind = next(iter(types)) if len(types) == 1 else "F32"
    files = tuple(
        sorted(
            path for path in folder.iterdir() if path.suffix in {".safetensors", ".json", ".jinja", ".model", ".txt"}
        )
    )
    return Checkpoint(
        architecture=ARCHITECTURES[name],
        parameters=sum(types.values()),
        bytes=sum(path.stat().st_size for path in weights),
        kind=_TYPES[kind],
        files=files,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LONGEST_CONFIG:
            raise ModelRejected(f"{path} is too large for what it should be")
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelRejected(f"{path} cannot be read: {error.strerror}; is that the folder of a checkpoint?") from error
    except (ValueError, RecursionError) as error:
        raise ModelRejected(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ModelRejected(f"{path} is not a JSON object")
    return found


def _tensors(path: Path) -> list[tuple[str, int]]:
    """Return type and number of values of each tensor, having checked that the header fits the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
            raise ModelRejected(f"{path} is not a safetensors file: its header claims {length} bytes")
        header = file.read(length)
    found: list[tuple[str, int]] = []
    try:
        for name, entry in json.loads(header).items():
            if name == "__metadata__":
                continue
            start, end = entry["data_offsets"]
            if not 0 <= start <= end <= size - 8 - length:
                raise ModelRejected(f"{path}: tensor {name[:80]} lies outside of the file: truncated")
            found.append((str(entry["dtype"])[:16], math.prod(entry["shape"])))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelRejected(f"{path} is not a safetensors file: {error}") from error
    return found
