"""Is this file a GGUF that the native loader can be given? Read in pure Python, bounds-checked.

llama.cpp reads a model file with the trust of a program that made it itself: lengths and
offsets from the file reach C++ allocations, and some arrays are indexed by the length of
another. So every count, length, type and offset is checked here first. Weight values are not
looked at: their integrity is the SHA-256, checked by the store.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path

import msgspec

from agent.errors import ModelRejected

_MAX_METADATA = 4096
_MAX_TENSORS = 65_536
_MAX_KEY = 1024
_MAX_STRING = 16 << 20
_MAX_ARRAY = 1 << 24
_MAX_STRINGS = 1 << 20  # in all arrays together: vocabularies of 262,144 tokens with 514,906 merges exist
_MAX_TEXT = 24 << 20  # bytes of all texts that are kept
_MAX_TENSOR_NAME = 63  # GGML_MAX_NAME less the final zero
_MAX_DIMENSIONS = 4
_DEFAULT_ALIGNMENT = 32

_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_LENGTH = struct.Struct("<Q").unpack_from
_SCALAR_BYTES = {kind: struct.calcsize(code) for kind, code in _SCALARS.items()}

# ggml type -> (elements of a block, bytes of a block); types whose support was removed are absent.
TENSOR_TYPES = {
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    9: (32, 36),  # Q8_1
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    15: (256, 292),  # Q8_K
    16: (256, 66),  # IQ2_XXS
    17: (256, 74),  # IQ2_XS
    18: (256, 98),  # IQ3_XXS
    19: (256, 50),  # IQ1_S
    20: (32, 18),  # IQ4_NL
    21: (256, 110),  # IQ3_S
    22: (256, 82),  # IQ2_S
    23: (256, 136),  # IQ4_XS
    24: (1, 1),  # I8
    25: (1, 2),  # I16
    26: (1, 4),  # I32
    27: (1, 8),  # I64
    28: (1, 8),  # F64
    29: (256, 56),  # IQ1_M
    30: (1, 2),  # BF16
    34: (256, 54),  # TQ1_0
    35: (256, 66),  # TQ2_0
    39: (32, 17),  # MXFP4
    40: (64, 36),  # NVFP4
    41: (128, 18),  # Q1_0
    42: (64, 18),  # Q2_0
}


class GgufHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What a valid header says."""

    version: int
    architecture: str
    context_tokens: int | None
    vocabulary: int  # tokens in the file
    tensors: int
    metadata: int
    has_chat_template: bool
    keys: frozenset[str] = frozenset()  # of all metadata
    scalars: dict[str, str | float | int] = {}  # metadata that are no arrays
    shapes: dict[str, tuple[int, ...]] = {}  # of all tensors, the length of a row first
    types: dict[str, int] = {}  # of all tensors, numbers of TENSOR_TYPES
    places: dict[str, tuple[int, int]] = {}  # of all tensors, first byte in the file and number of bytes

    @property
    def parameters(self) -> int:
        """Weights in all tensors."""
        return sum(math.prod(shape) for shape in self.shapes.values())


class _Reader:
    """A cursor that cannot leave its buffer."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self.data = data
        self.size = len(data)
        self.at = 0
        self.strings_left = _MAX_STRINGS
        self.text_left = _MAX_TEXT

    def skip(self, count: int, what: str) -> int:
        start = self.at
        if count > self.size - start:
            raise ModelRejected(f"GGUF: {what} at byte {start} reaches past the end of the file")
        self.at = start + count
        return start

    def uint32(self, what: str) -> int:
        return int.from_bytes(self.data[self.skip(4, what) : self.at], "little")

    def uint64(self, what: str) -> int:
        return int.from_bytes(self.data[self.skip(8, what) : self.at], "little")

    def skip_string(self, what: str, limit: int = _MAX_STRING) -> tuple[int, int]:
        length = self.uint64(f"the length of {what}")
        if length > limit:
            raise ModelRejected(f"GGUF: {what} at byte {self.at} claims {length} bytes; at most {limit} are allowed")
        start = self.skip(length, what)
        return start, self.at

    def string(self, what: str, limit: int = _MAX_STRING) -> str:
        start, end = self.skip_string(what, limit)
        self.text_left -= end - start
        if self.text_left < 0:
            raise ModelRejected(f"GGUF: more than {_MAX_TEXT} bytes of text are claimed, the last is {what}")
        try:
            return self.data[start:end].decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelRejected(f"GGUF: {what} at byte {start} is not UTF-8") from error

    def skip_strings(self, count: int, what: str) -> None:
        """Skip an array of texts. Vocabularies are most of a header, so this loop is a tight one."""
        self.strings_left -= count
        if self.strings_left < 0:
            raise ModelRejected(f"GGUF: {what} claims {count} texts; at most {_MAX_STRINGS} are allowed in all")
        data, at, room = self.data, self.at, self.size - 8
        for _ in range(count):
            if at > room:
                raise ModelRejected(f"GGUF: {what} at byte {at} reaches past the end of the file")
            (length,) = _LENGTH(data, at)
            at += 8 + length
        self.at = at
        if at > self.size:
            raise ModelRejected(f"GGUF: {what} reaches past the end of the file")

    def scalar(self, kind: int, what: str) -> float | int:
        start = self.skip(_SCALAR_BYTES[kind], what)
        value: float | int = struct.unpack("<" + _SCALARS[kind], self.data[start : self.at])[0]
        return value


class _Tensor(msgspec.Struct, frozen=True):
    shape: tuple[int, ...]
    kind: int
    bytes: int
    at: int = 0  # counted from the first tensor


class _Array(msgspec.Struct, frozen=True):
    kind: int
    length: int


_Value = str | float | int | _Array


def check_gguf(path: Path, *, weights: bool = True) -> GgufHeader:
    """Check the file's structure. Raises ModelRejected (never anything else for what is in the file).

    Only a file of ``weights`` must name an architecture.
    """
    try:
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise ModelRejected("GGUF: the file is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return check_gguf_bytes(data, weights=weights)
    except OSError as error:
        raise ModelRejected(f"{path} cannot be read: {error.strerror or error}") from error


def check_gguf_bytes(data: mmap.mmap | bytes, *, weights: bool = True) -> GgufHeader:
    """Check a whole file in memory. Raises ModelRejected."""
    reader = _Reader(data)
    if data[reader.skip(4, "the magic") : reader.at] != b"GGUF":
        raise ModelRejected("GGUF: the file does not begin with GGUF; it is something else, or damaged")
    version = reader.uint32("the version")
    if version not in {2, 3}:
        raise ModelRejected(f"GGUF: version {version} is not supported; 2 and 3 are")
    tensors = _count(reader, "tensors", _MAX_TENSORS)
    entries = _count(reader, "metadata entries", _MAX_METADATA)
    metadata = _metadata(reader, entries)
    table = _tensor_table(reader, tensors, _alignment(metadata))
    if not weights:
        metadata.setdefault("general.architecture", (_STRING, "none"))
    return _header(version, table, metadata)


def _count(reader: _Reader, what: str, limit: int) -> int:
    count = reader.uint64(f"the number of {what}")
    if count > limit:
        raise ModelRejected(f"GGUF: {count} {what} are claimed; at most {limit} are allowed")
    return count


def _metadata(reader: _Reader, count: int) -> dict[str, tuple[int, _Value]]:
    found: dict[str, tuple[int, _Value]] = {}
    for _ in range(count):
        key = reader.string("a metadata key", _MAX_KEY)
        if not key or key in found:
            raise ModelRejected(f"GGUF: the metadata key {key[:80]!r} is empty or written twice")
        kind = reader.uint32(f"the type of {key[:80]!r}")
        found[key] = (kind, _value(reader, kind, f"the value of {key[:80]!r}"))
    return found


def _value(reader: _Reader, kind: int, what: str) -> _Value:
    if kind == _STRING:
        return reader.string(what)
    if kind in _SCALARS:
        return _checked_bool(reader.scalar(kind, what), what) if kind == _BOOL else reader.scalar(kind, what)
    if kind != _ARRAY:
        raise ModelRejected(f"GGUF: {what} has the unknown type {kind}")
    element = reader.uint32(f"the element type of {what}")
    length = reader.uint64(f"the length of {what}")
    if length > _MAX_ARRAY:
        raise ModelRejected(f"GGUF: {what} claims {length} elements; at most {_MAX_ARRAY} are allowed")
    if element == _STRING:
        reader.skip_strings(length, what)
    elif element in _SCALARS:
        reader.skip(length * _SCALAR_BYTES[element], what)
    else:
        raise ModelRejected(f"GGUF: {what} is an array of the unsupported type {element}")
    return _Array(element, length)


def _checked_bool(value: float, what: str) -> int:
    if value not in {0, 1}:
        raise ModelRejected(f"GGUF: {what} is neither true nor false")
    return int(value)


def _alignment(metadata: dict[str, tuple[int, _Value]]) -> int:
    if "general.alignment" not in metadata:
        return _DEFAULT_ALIGNMENT
    kind, value = metadata["general.alignment"]
    if kind != _UINT32 or not isinstance(value, int) or not 8 <= value <= 1 << 20 or value & (value - 1):
        raise ModelRejected("GGUF: general.alignment is not a power of two from 8 to 2^20")
    return value


def _tensor_table(reader: _Reader, count: int, alignment: int) -> dict[str, _Tensor]:
    """Check names, shapes and types, and that the tensors fill the rest of the file, one after the other."""
    found: dict[str, _Tensor] = {}
    expected = last = 0
    for _ in range(count):
        name = reader.string("a tensor name", _MAX_TENSOR_NAME)
        if not name or name in found:
            raise ModelRejected(f"GGUF: the tensor name {name!r} is empty or used twice")
        tensor = _tensor(reader, name)
        offset = reader.uint64(f"the offset of {name!r}")
        if offset != expected:
            raise ModelRejected(f"GGUF: tensor {name!r} lies at offset {offset}; {expected} is where it must lie")
        found[name] = msgspec.structs.replace(tensor, at=offset)
        expected += -(-tensor.bytes // alignment) * alignment
        last = offset + tensor.bytes
    start = -(-reader.at // alignment) * alignment
    if count and start + last > reader.size:
        raise ModelRejected(f"GGUF: the tensors need {start + last} bytes and the file has {reader.size}: truncated")
    return {name: msgspec.structs.replace(tensor, at=start + tensor.at) for name, tensor in found.items()}


def _tensor(reader: _Reader, name: str) -> _Tensor:
    dimensions = reader.uint32(f"the dimensions of {name!r}")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise ModelRejected(f"GGUF: tensor {name!r} has {dimensions} dimensions; 1 to {_MAX_DIMENSIONS} are allowed")
    shape = tuple(reader.uint64(f"the shape of {name!r}") for _ in range(dimensions))
    kind = reader.uint32(f"the type of {name!r}")
    if kind not in TENSOR_TYPES:
        raise ModelRejected(f"GGUF: tensor {name!r} has the unknown type {kind}")
    block, block_bytes = TENSOR_TYPES[kind]
    elements = math.prod(shape)
    if elements < 1 or elements >= 1 << 62:
        raise ModelRejected(f"GGUF: tensor {name!r} has an impossible shape {list(shape)}")
    if shape[0] % block:
        raise ModelRejected(f"GGUF: rows of tensor {name!r} have {shape[0]} values, not a multiple of {block}")
    return _Tensor(shape, kind, elements // block * block_bytes)


def _header(version: int, table: dict[str, _Tensor], metadata: dict[str, tuple[int, _Value]]) -> GgufHeader:
    architecture = metadata.get("general.architecture", (0, 0))[1]
    if not isinstance(architecture, str) or not architecture:
        raise ModelRejected("GGUF: general.architecture is missing or not a text")
    context = metadata.get(f"{architecture}.context_length", (0, None))[1]
    template = metadata.get("tokenizer.chat_template", (0, None))[1]
    if template is not None and not isinstance(template, str):
        raise ModelRejected("GGUF: tokenizer.chat_template is not a text")
    return GgufHeader(
        version=version,
        architecture=architecture,
        context_tokens=context if isinstance(context, int) else None,
        vocabulary=_vocabulary(metadata),
        tensors=len(table),
        metadata=len(metadata),
        has_chat_template=template is not None,
        keys=frozenset(metadata),
        scalars={key: value for key, (_, value) in metadata.items() if not isinstance(value, _Array)},
        shapes={name: tensor.shape for name, tensor in table.items()},
        types={name: tensor.kind for name, tensor in table.items()},
        places={name: (tensor.at, tensor.bytes) for name, tensor in table.items()},
    )


def _vocabulary(metadata: dict[str, tuple[int, _Value]]) -> int:
    """Return the number of tokens. The native loader indexes the other arrays by it, unchecked."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        return 0
    value = tokens[1]
    if not isinstance(value, _Array) or value.kind != _STRING:
        raise ModelRejected("GGUF: tokenizer.ggml.tokens is not an array of texts")
    for key, kind in (("tokenizer.ggml.token_type", _INT32), ("tokenizer.ggml.scores", _FLOAT32)):
        beside = metadata.get(key, (_ARRAY, _Array(kind, value.length)))[1]
        if beside != _Array(kind, value.length):
            raise ModelRejected(f"GGUF: {key} does not match the {value.length} tokens")
    return value.length
