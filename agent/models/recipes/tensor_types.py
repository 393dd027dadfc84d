"""How the weights of a GGUF file are written, and what that means for making another of it."""

from __future__ import annotations

import math

import msgspec

from agent.models.gguf_check import TENSOR_TYPES, GgufHeader

TYPE_NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0", 42: "Q2_0",
}  # fmt: skip
_NEW_METADATA = 4096  # bytes, at most: llama.cpp notes the type of the file
# From these a smaller type is a first rounding, or next to it: Q8_0 costs less than the target itself by far.
GOOD_SOURCES = frozenset({"F32", "F16", "BF16", "F64", "Q8_0"})


class GgufTarget(msgspec.Struct, frozen=True):
    """A type of GGUF file."""

    name: str
    ftype: int  # of llama.h, LLAMA_FTYPE_*
    bits: float  # of a weight, in the tensors that the type is for
    importance: bool  # whether an importance matrix changes the result


TARGETS = {
    f"gguf-{target.name.lower()}": target
    for target in (
        GgufTarget("F16", 1, 16, importance=False),
        GgufTarget("Q8_0", 7, 8.5, importance=False),
        GgufTarget("Q6_K", 18, 6.5625, importance=True),
        GgufTarget("Q5_K_M", 17, 5.5, importance=True),
        GgufTarget("Q4_K_M", 15, 4.5, importance=True),
        GgufTarget("Q4_0", 2, 4.5, importance=True),
        GgufTarget("IQ4_XS", 30, 4.25, importance=True),
    )
}


class Precision(msgspec.Struct, frozen=True):
    """Of a file's matrices."""

    name: str  # of the type that most weights have
    bits: float  # of a weight, in the mean


def precision(header: GgufHeader) -> Precision:
    """Return how the matrices of a file are written: vectors are never quantized and do not count."""
    weights: dict[int, int] = {}
    for name, shape in header.shapes.items():
        if len(shape) > 1:
            kind = header.types[name]
            weights[kind] = weights.get(kind, 0) + math.prod(shape)
    if not weights:
        return Precision("none", 0)
    bits = sum(count * 8 * TENSOR_TYPES[kind][1] / TENSOR_TYPES[kind][0] for kind, count in weights.items())
    return Precision(TYPE_NAMES[max(weights, key=weights.__getitem__)], bits / sum(weights.values()))


def expected_bytes(header: GgufHeader, target: GgufTarget, file_bytes: int) -> int:
    """Return what the new file takes at most: some tensors stay larger than the target's type."""
    matrices = sum(math.prod(shape) for shape in header.shapes.values() if len(shape) > 1)
    others = file_bytes - sum(header.places[name][1] for name, shape in header.shapes.items() if len(shape) > 1)
    return round(matrices * max(target.bits, 8.5 if target.bits > 4.25 else 6.5625) / 8) + others + _NEW_METADATA
