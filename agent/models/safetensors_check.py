"""Is this a whole safetensors file? Pure Python, bounds-checked, no weights are read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from agent.errors import ModelRejected

_MAX_HEADER = 64 << 20
_MAX_TENSORS = 65_536
_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8,
}  # fmt: skip


class SafeTensor(NamedTuple):
    """One tensor, as the header says it."""

    name: str
    kind: str  # "F32", "BF16", ...
    shape: tuple[int, ...]
    first: int  # byte in the file
    last: int  # the one after its last

    @property
    def weights(self) -> int:
        return math.prod(self.shape)


def check_safetensors(path: Path) -> int:
    """Check a file's header against its size and return its number of weights. Raises ModelRejected."""
    return sum(tensor.weights for tensor in tensors_in(path))


def tensors_in(path: Path) -> list[SafeTensor]:
    """Return the tensors of a file, whose data lie one after the other to its very end.

    Raises ModelRejected for a header that does not hold, OSError.
    """
    total = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if total < 8 or not 2 <= length <= min(_MAX_HEADER, total - 8):
            raise ModelRejected(f"safetensors: a header of {length} bytes in a file of {total}")
        header = _json(file.read(length))
    header.pop("__metadata__", None)
    if len(header) > _MAX_TENSORS:
        raise ModelRejected(f"safetensors: {len(header)} tensors")
    found = [_tensor(name, tensor, 8 + length) for name, tensor in header.items()]
    at = 8 + length
    for tensor in sorted(found, key=lambda one: (one.first, one.last)):  # without gap and overlap
        if tensor.first != at:
            raise ModelRejected(f"safetensors: a tensor begins at byte {tensor.first}, not at {at}")
        at = tensor.last
    if at != total:
        cut = ": it is cut off" if at > total else ""
        raise ModelRejected(f"safetensors: tensors end at byte {at}, the file has {total}{cut}")
    return found


def _tensor(name: str, tensor: Any, begin: int) -> SafeTensor:
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
    if (last - first) * 8 != math.prod(shape) * _BITS[kind]:
        raise ModelRejected(f"safetensors: {name[:80]!r} of shape {shape} takes {last - first} bytes")
    return SafeTensor(name, kind, tuple(shape), begin + first, begin + last)


def _json(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ModelRejected("safetensors: the header is not JSON") from error
    if not isinstance(value, dict):
        raise ModelRejected("safetensors: the header is not a JSON object")
    return value
