"""Writes small GGUF files, valid or wrong on purpose."""

from __future__ import annotations

import struct

U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10
_CODES = {U32: "<I", I32: "<i", F32: "<f", BOOL: "<B", U64: "<Q"}

METADATA = (
    ("general.architecture", STRING, "llama"),
    ("llama.context_length", U32, 4096),
    ("tokenizer.ggml.tokens", ARRAY, (STRING, ["a", "b", "é"])),
    ("tokenizer.ggml.token_type", ARRAY, (I32, [1, 1, 1])),
    ("tokenizer.chat_template", STRING, "{{ messages }}"),
)
TENSORS = (("token_embd.weight", (32, 3), 3, 0), ("output_norm.weight", (32,), 0, 64))  # Q4_1: 60 bytes, padded


def gguf(*, magic=b"GGUF", version=3, metadata=METADATA, tensors=TENSORS, data=192, n_tensors=None, n_metadata=None):
    """Return the bytes of a file; ``tensors`` are (name, shape, type, offset)."""
    out = magic + struct.pack("<I", version)
    out += struct.pack(
        "<QQ", len(tensors) if n_tensors is None else n_tensors, len(metadata) if n_metadata is None else n_metadata
    )
    for key, kind, value in metadata:
        out += text(key) + struct.pack("<I", kind) + encode(kind, value)
    for name, shape, kind, offset in tensors:
        out += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + struct.pack("<IQ", kind, offset)
    return out + b"\0" * (-len(out) % 32) + b"\1" * data


def with_metadata(whole, metadata):
    """Return a valid file with more metadata, and all of its tensors as they are."""
    added = b"".join(text(key) + struct.pack("<I", kind) + encode(kind, value) for key, kind, value in metadata)
    filler = text("filler") + struct.pack("<I", STRING)
    added += filler + text("x" * (-(len(added) + len(filler) + 8) % 32))  # the tensors stay aligned
    (count,) = struct.unpack_from("<Q", whole, 16)
    return whole[:16] + struct.pack("<Q", count + len(metadata) + 1) + added + whole[24:]


def encode(kind, value):
    if kind == STRING:
        return text(value)
    if kind == ARRAY:
        element, items = value
        return struct.pack("<IQ", element, len(items)) + b"".join(encode(element, item) for item in items)
    return struct.pack(_CODES[kind], value) if kind in _CODES else value


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw
