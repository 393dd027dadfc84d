"""Is this a whole safetensors file? Pure Python, bounds-checked, no weights are read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from agent.errors import ModelRejected

_MAX_HEADER = 64 << 20
_MAX_TENSORS = 65_536
_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8,
}  # fmt: skip


def check_safetensors(path: Path) -> int:
    """Check a file's header against its size and return its number of weights. Raises ModelRejected."""
    total = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if total < 8 or not 2 <= length <= min(_MAX_HEADER, total - 8):
            raise ModelRejected(f"safetensors: a header of {length} bytes in a file of {total}")
        header = _json(file.read(length))
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
    if (
        not isinstance(kind, str)
        or kind not in _BITS
        or len(shape) > 8
        or not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers)
    ):
        raise ModelRejected(f"safetensors: {name[:80]!r} has an unknown type or impossible numbers")
    count = math.prod(shape)
    if (last - first) * 8 != count * _BITS[kind]:
        raise ModelRejected(f"safetensors: {name[:80]!r} of shape {shape} takes {last - first} bytes")
    return first, last, count


def _json(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ModelRejected("safetensors: the header is not JSON") from error
    if not isinstance(value, dict):
        raise ModelRejected("safetensors: the header is not a JSON object")
    return value
