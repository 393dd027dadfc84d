"""Are these the files of a Hugging Face checkpoint? Pure Python, bounds-checked, no weights are read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from agent.errors import ModelRejected

_MAX_HEADER = 64 << 20
_MAX_CONFIG = 4 << 20
_MAX_TENSORS = 65_536
_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8,
}  # fmt: skip
# Families that the llama.cpp of the engine knows, by the model_type of config.json.
FAMILIES = frozenset(
    {"llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gemma3_text", "phi", "phi3", "granite", "smollm3", "mistral"}
)  # fmt: skip


def check_safetensors(path: Path) -> int:
    """Check a file's header against its size and return its number of weights. Raises ModelRejected."""
    total = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if total < 8 or not 2 <= length <= min(_MAX_HEADER, total - 8):
            raise ModelRejected(f"safetensors: a header of {length} bytes in a file of {total}")
        header = _json(file.read(length), "the header of safetensors")
    header.pop("__metadata__", None)
    if len(header) > _MAX_TENSORS:
        raise ModelRejected(f"safetensors: {len(header)} tensors")
    spans, weights = [], 0
    for name, tensor in header.items():
        first, last, count = _tensor(name, tensor)
        spans.append((first, last))
        weights += count
    at = 0
    for first, last in sorted(spans):  # without gap and overlap, to the very end
        if first != at:
            raise ModelRejected(f"safetensors: a tensor begins at byte {first} of the data, not at {at}")
        at = last
    if at != total - 8 - length:
        raise ModelRejected(f"safetensors: tensors end at byte {at} of the data, the file has {total - 8 - length}")
    return weights


def _tensor(name: str, tensor: Any) -> tuple[int, int, int]:
    try:
        kind, shape, (first, last) = tensor["dtype"], tensor["shape"], tensor["data_offsets"]
        numbers = [*shape, first, last]
    except (TypeError, KeyError, ValueError) as error:
        raise ModelRejected(f"safetensors: {name[:80]!r} is not described as a tensor") from error
    if kind not in _BITS or len(shape) > 8 or not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers):
        raise ModelRejected(f"safetensors: {name[:80]!r} has an unknown type or impossible numbers")
    count = math.prod(shape)
    if (last - first) * 8 != count * _BITS[kind]:
        raise ModelRejected(f"safetensors: {name[:80]!r} of shape {shape} takes {last - first} bytes")
    return first, last, count


def check_config(path: Path) -> int | None:
    """Check config.json and return its context in tokens, if it says one. Raises ModelRejected."""
    if path.stat().st_size > _MAX_CONFIG:
        raise ModelRejected("config.json is too large to be one")
    config = _json(path.read_bytes(), "config.json")
    if config.get("auto_map"):
        raise ModelRejected("config.json wants code of the repository to be run; that is never done")
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ModelRejected(
            f"the architecture {family!r} is not supported; supported are {', '.join(sorted(FAMILIES))}"
        )
    tokens = config.get("max_position_embeddings")
    return tokens if type(tokens) is int and tokens > 0 else None


def _json(raw: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ModelRejected(f"{what} is not JSON") from error
    if not isinstance(value, dict):
        raise ModelRejected(f"{what} is not a JSON object")
    return value
