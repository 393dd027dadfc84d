"""From a PEFT LoRA adapter (adapter_config.json, adapter_model.safetensors) to a GGUF one.

Only what can be carried over exactly is converted; everything else is refused with its name.
The scale of PEFT is alpha / r, or alpha / sqrt(r) with use_rslora, and alpha may differ by
module; GGUF has one alpha and divides by r. What remains is multiplied into B.

llama.cpp turns the positions of a head in pairs of neighbours for some architectures, where
Hugging Face pairs its two halves. The rows of the query and key matrices of those are
reordered when a model is converted, and so are those of B here (A works on the other side).
"""

from __future__ import annotations

import math
import os
import re
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.errors import ModelRejected
from agent.linear_regex import LinearRegex, UnsafePattern
from agent.models.adapter_check import A, B, check_adapter
from agent.models.gguf_check import GgufHeader, check_gguf
from agent.models.safetensors_check import tensors_in

Matrix = NDArray[np.float32]

# Architecture -> whether rows of query and key are reordered.
ARCHITECTURES = {"llama": True, "smollm3": True, "qwen2": False, "qwen3": False, "gemma2": False, "gemma3": False}
# The parts of a layer: Hugging Face's name -> GGUF's.
MODULES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<module>model\.layers\.(?P<layer>\d+)\.(?P<part>.+))\.lora_(?P<side>[AB])\.weight"
)
_TYPES: Mapping[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_ALIGNMENT = 32
_F32 = 0
_STRING, _FLOAT32 = 8, 6


class PeftAdapter(msgspec.Struct, frozen=True):
    """What a conversion made."""

    tensors: int
    rank: int  # the largest
    bytes: int


def convert(folder: Path, base: Path, output: Path) -> PeftAdapter:
    """Convert the adapter in ``folder`` for the GGUF model ``base``.

    Writes ``output`` only once all is checked against the base model. Raises ModelRejected
    with what is wrong, OSError when the file cannot be written.
    """
    header = check_gguf(base)
    if header.architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ModelRejected(f"adapters for {header.architecture} cannot be converted; those for {known} can")
    config = _config(folder / "adapter_config.json")
    tensors: dict[str, Matrix] = {}
    for name, matrix in read_safetensors(folder / "adapter_model.safetensors"):
        found = _NAME.fullmatch(name)
        if found is None or found["part"] not in MODULES:
            raise ModelRejected(
                f"tensor {name[:200]} is not a LoRA matrix of {', '.join(MODULES)}: it cannot be converted"
            )
        if matrix.ndim != 2 or not np.isfinite(matrix).all():
            raise ModelRejected(f"tensor {name} is not a matrix of finite numbers")
        part = MODULES[found["part"]]
        target = f"blk.{found['layer']}.{part}.weight"
        if found["side"] == "A":
            tensors[target + A] = matrix
            continue
        rows = matrix * np.float32(_factor(config, found["module"], matrix.shape[1]))
        if ARCHITECTURES[header.architecture] and part in {"attn_q", "attn_k"}:
            rows = reordered(rows, _heads(header, part))
        tensors[target + B] = rows
    _write(output, header.architecture, config.lora_alpha, tensors, header)
    rank = max((matrix.shape[1] for name, matrix in tensors.items() if name.endswith(B)), default=0)
    return PeftAdapter(len(tensors), rank, output.stat().st_size)


class _Config(msgspec.Struct):
    """What is read of adapter_config.json; the rest does not change the weights."""

    peft_type: str
    lora_alpha: float
    r: int
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    bias: str = "none"
    lora_bias: bool = False
    modules_to_save: list[str] | None = None
    alpha_pattern: dict[str, float] | None = None
    rank_pattern: dict[str, int] | None = None
    layer_replication: Any = None
    alora_invocation_tokens: Any = None
    invocation_string: str | None = None


def _config(path: Path) -> _Config:
    try:
        config = msgspec.json.decode(path.read_bytes(), type=_Config)
    except OSError as error:
        raise ModelRejected(
            f"{path} cannot be read: {error.strerror}; is that the folder of a PEFT adapter?"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelRejected(f"{path} is not the configuration of a LoRA adapter: {error}") from error
    if config.peft_type != "LORA":
        raise ModelRejected(f"{path}: peft_type is {config.peft_type}; only LORA can be converted")
    refused = {
        "use_dora": config.use_dora,
        "fan_in_fan_out": config.fan_in_fan_out,
        "bias": config.bias != "none",
        "lora_bias": config.lora_bias,
        "modules_to_save": bool(config.modules_to_save),
        "layer_replication": bool(config.layer_replication),
        "alora_invocation_tokens": bool(config.alora_invocation_tokens or config.invocation_string),
    }
    if used := [name for name, is_used in refused.items() if is_used]:
        raise ModelRejected(f"{path}: {', '.join(used)} cannot be carried over to GGUF")
    if not math.isfinite(config.lora_alpha) or config.r < 1:
        raise ModelRejected(f"{path}: lora_alpha or r is no usable number")
    return config


def _factor(config: _Config, module: str, rank: int) -> float:
    """Return what B is multiplied with, so that lora_alpha / rank is the scale of this module in PEFT."""
    alpha = config.lora_alpha
    for pattern, own in (config.alpha_pattern or {}).items():
        if _names(pattern, module):
            alpha = own
            break
    scale = alpha / math.sqrt(rank) if config.use_rslora else alpha / rank
    return scale / (config.lora_alpha / rank) if config.lora_alpha else 0.0


def _names(pattern: str, module: str) -> bool:
    """Whether PEFT takes a module for one that the pattern names. Raises ModelRejected."""
    try:
        return LinearRegex(rf"^(?:.*\.)?(?:{pattern})$").search(module)
    except UnsafePattern as error:
        raise ModelRejected(f"alpha_pattern names modules by {pattern[:80]!r}: {error}") from error


def _heads(header: GgufHeader, part: str) -> int:
    kind = "head_count_kv" if part == "attn_k" else "head_count"
    heads = header.scalars.get(f"{header.architecture}.attention.{kind}")
    if not isinstance(heads, int) or heads < 1:
        raise ModelRejected(f"the base model does not say its {kind}")
    return heads


def reordered(rows: Matrix, heads: int) -> Matrix:
    """Return the rows of each head from two halves to pairs of neighbours."""
    if rows.shape[0] % (2 * heads):
        raise ModelRejected(f"{rows.shape[0]} rows are not a whole number of pairs for {heads} heads")
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, rows.shape[1])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def read_safetensors(path: Path) -> Iterator[tuple[str, Matrix]]:
    """Yield the tensors of a safetensors file as float32. Raises ModelRejected for what does not hold."""
    try:
        found, data = tensors_in(path), path.read_bytes()
    except OSError as error:
        raise ModelRejected(f"{path} cannot be read: {error.strerror}; only safetensors can be converted") from error
    except ModelRejected as error:
        raise ModelRejected(f"{path}: {error}") from error
    for tensor in found:
        kind = _TYPES.get(tensor.kind)
        if kind is None or not tensor.weights:
            raise ModelRejected(
                f"{path}: {tensor.name[:80]} is empty, or its type {tensor.kind} none of {', '.join(_TYPES)}"
            )
        values = np.frombuffer(data, kind, tensor.weights, tensor.first)
        if tensor.kind == "BF16":  # the upper half of a float32
            values = (values.astype("<u4") << np.uint32(16)).view("<f4")
        yield tensor.name, values.astype(np.float32).reshape(tensor.shape)


def _write(path: Path, architecture: str, alpha: float, tensors: Mapping[str, Matrix], base: GgufHeader) -> None:
    handle, name = tempfile.mkstemp(prefix=".adapter-", suffix=".gguf", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_gguf_header(architecture, alpha, tensors))
            for matrix in tensors.values():
                file.write(b"\0" * (-file.tell() % _ALIGNMENT))
                file.write(matrix.astype("<f4").tobytes())
            file.flush()
            os.fsync(file.fileno())
        check_adapter(check_gguf(temporary), base)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _gguf_header(architecture: str, alpha: float, tensors: Mapping[str, Matrix]) -> bytes:
    values: dict[str, str | float] = {
        "general.type": "adapter",
        "general.architecture": architecture,
        "adapter.type": "lora",
        "adapter.lora.alpha": alpha,
    }
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(values))]
    for key, value in values.items():
        parts.append(_string(key))
        if isinstance(value, str):
            parts += [struct.pack("<I", _STRING), _string(value)]
        else:
            parts.append(struct.pack("<If", _FLOAT32, value))
    offset = 0
    for name, matrix in tensors.items():
        rows, columns = matrix.shape
        parts += [_string(name), struct.pack("<IQQIQ", 2, columns, rows, _F32, offset)]
        offset += matrix.nbytes + -matrix.nbytes % _ALIGNMENT
    header = b"".join(parts)
    return header + b"\0" * (-len(header) % _ALIGNMENT)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
