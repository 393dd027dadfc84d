"""What an ONNX file says of its graph: read in pure Python, bounds-checked, without the weights.

ONNX Runtime reads the files that a graph names for its weights, so they are looked at first:
nothing outside of the model's own folder may be named.
"""

from __future__ import annotations

import math
import mmap
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from agent.errors import ModelRejected

_MOST_DEPTH = 8  # of graphs inside of graphs
_MOST_FIELDS = 1_000_000
_MOST_TENSORS = 65_536
_MOST_DIMENSIONS = 64
_MOST_TEXT = 32 << 20  # bytes of all names
_LONGEST_NAME = 4096
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
# TensorProto.DataType -> bits of an element
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16, 21: 4, 22: 4}
_BITS |= dict.fromkeys((17, 18, 19, 20), 8)
_FLOATS = frozenset({1, 10, 16})


class OnnxGraph(msgspec.Struct, frozen=True, kw_only=True):
    """What a valid file says."""

    ir_version: int = 0  # of the file format itself
    opsets: dict[str, int]  # version of each set of operators; "" is that of ONNX itself
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: dict[str, int]  # how often each is used
    weights: dict[str, int]  # how many of each kind: "int4", "int8", "float32", ...
    data_files: dict[str, int] = {}  # beside the file: name -> bytes that it must have at least

    @property
    def parameters(self) -> int:
        """Weights in all tensors."""
        return sum(self.weights.values())

    @property
    def quantization(self) -> str:
        """The kind that most weights are of."""
        return max(self.weights, key=lambda kind: self.weights[kind], default="")


class _Field(NamedTuple):
    number: int
    kind: int
    value: int  # of a varint
    start: int  # of bytes
    end: int


class _Tensor(NamedTuple):
    name: str
    dims: tuple[int, ...]
    data_type: int
    place: dict[str, str]  # of data outside of the file


class _Reader:
    """Protocol buffers, of which only the wire format is known; a cursor that cannot leave its buffer."""

    def __init__(self, data: mmap.mmap | bytes, name: str) -> None:
        self.data = data
        self.name = name
        self.left = _MOST_FIELDS
        self.text_left = _MOST_TEXT

    def fields(self, start: int, end: int) -> Iterator[_Field]:
        at = start
        while at < end:
            self.left -= 1
            if self.left < 0:
                raise ModelRejected(f"{self.name} is no ONNX file that can be read: it has too many parts")
            key, at = self._varint(at, end)
            number, kind = key >> 3, key & 7
            if kind == _VARINT:
                value, at = self._varint(at, end)
                yield _Field(number, kind, value, 0, 0)
                continue
            size = {_EIGHT: 8, _FOUR: 4}.get(kind)
            if kind == _BYTES:
                size, at = self._varint(at, end)
            if size is None or number == 0 or size > end - at:
                raise ModelRejected(f"{self.name} is no ONNX file, or a damaged one: at byte {at} nothing can be read")
            yield _Field(number, kind, 0, at, at + size)
            at += size

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                break
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, at
        raise ModelRejected(f"{self.name} is no ONNX file, or a damaged one: it ends inside of a number at byte {at}")

    def text(self, field: _Field) -> str:
        if field.end - field.start > _LONGEST_NAME:
            raise ModelRejected(f"{self.name} has a name of {field.end - field.start} bytes at byte {field.start}")
        self.text_left -= field.end - field.start
        if self.text_left < 0:
            raise ModelRejected(f"{self.name} is no ONNX file that can be read: its names have too many bytes")
        return self.data[field.start : field.end].decode("utf-8", "replace")


class _Contents:
    """Gathers what the graphs of a file say."""

    def __init__(self, reader: _Reader) -> None:
        self.reader = reader
        self.operators: Counter[str] = Counter()
        self.tensors: list[_Tensor] = []
        self.packed: dict[str, int] = {}  # tensors with weights of so many bits in bytes
        self.aside: set[str] = set()  # tensors that are no weights: scales, tables
        self.inputs: list[str] = []
        self.outputs: list[str] = []

    def graph(self, field: _Field, depth: int) -> None:
        if depth > _MOST_DEPTH:
            raise ModelRejected(f"{self.reader.name} has graphs inside of graphs, deeper than {_MOST_DEPTH}")
        for part in self.reader.fields(field.start, field.end):
            if part.kind != _BYTES:
                continue
            if part.number == 1:
                self._node(part, depth)
            elif part.number == 5:
                self._tensor(part)
            elif part.number == 15:
                self._sparse_tensor(part)
            elif part.number in {11, 12} and depth == 0:
                (self.inputs if part.number == 11 else self.outputs).append(self._name(part))

    def function(self, field: _Field) -> None:
        """Look into an operator that the model itself defines."""
        for part in self.reader.fields(field.start, field.end):
            if part.number == 7 and part.kind == _BYTES:
                self._node(part, 1)

    def _sparse_tensor(self, field: _Field) -> None:
        """Look into its values and indices, which are tensors."""
        for part in self.reader.fields(field.start, field.end):
            if part.kind == _BYTES and part.number in {1, 2}:
                self._tensor(part)

    def _name(self, field: _Field) -> str:
        names = (self.reader.text(part) for part in self.reader.fields(field.start, field.end) if part.number == 1)
        return next(names, "")

    def _node(self, field: _Field, depth: int) -> None:
        inputs, operator, bits = [], "", 4
        for part in self.reader.fields(field.start, field.end):
            if part.kind != _BYTES:
                continue
            if part.number == 1:
                inputs.append(self.reader.text(part))
            elif part.number == 4:
                operator = self.reader.text(part)
            elif part.number == 5:
                bits = self._attribute(part, depth) or bits
        self.operators[operator] += 1
        if operator == "MatMulNBits":
            self.packed[inputs[1] if len(inputs) > 1 else ""] = bits
            self.aside.update(inputs[2:5])
        elif operator == "GatherBlockQuantized":
            self.packed.setdefault(inputs[0] if inputs else "", bits)
            self.aside.update(inputs[2:4])
        elif operator in {"GroupQueryAttention", "RotaryEmbedding"}:
            self.aside.update(inputs)

    def _attribute(self, field: _Field, depth: int) -> int:
        """Look into tensors and graphs of an attribute; return its number where it is ``bits``."""
        name, number = "", 0
        for part in self.reader.fields(field.start, field.end):
            if part.number == 1 and part.kind == _BYTES:
                name = self.reader.text(part)
            elif part.number == 3 and part.kind == _VARINT:
                number = part.value
            elif part.number in {5, 10} and part.kind == _BYTES:
                self._tensor(part)
            elif part.number in {22, 23} and part.kind == _BYTES:
                self._sparse_tensor(part)
            elif part.number in {6, 11} and part.kind == _BYTES:
                self.graph(part, depth + 1)
        return number if name == "bits" and number in {2, 4, 8} else 0

    def _tensor(self, field: _Field) -> None:
        dims: list[int] = []
        name, data_type = "", 0
        place: dict[str, str] = {}
        for part in self.reader.fields(field.start, field.end):
            if part.number == 1:
                dims += [part.value] if part.kind == _VARINT else self._packed_numbers(part)
            elif part.number == 2:
                data_type = part.value
            elif part.number == 8:
                name = self.reader.text(part)
            elif part.number == 13:
                self._put_place(part, place)
        if len(self.tensors) >= _MOST_TENSORS or len(dims) > _MOST_DIMENSIONS:
            raise ModelRejected(f"{self.reader.name} has too many tensors, or one of too many dimensions")
        self.tensors.append(_Tensor(name, tuple(dims), data_type, place))

    def _put_place(self, field: _Field, place: dict[str, str]) -> None:
        pair = {
            side.number: self.reader.text(side)
            for side in self.reader.fields(field.start, field.end)
            if side.kind == _BYTES
        }
        key = pair.get(1, "")
        if key in place:  # whoever reads it next might take the other one
            raise ModelRejected(f"{self.reader.name} says twice where the same tensor is ({key[:40]!r})")
        place[key] = pair.get(2, "")

    def _packed_numbers(self, field: _Field) -> list[int]:
        found: list[int] = []
        at = field.start
        while at < field.end and len(found) <= _MOST_DIMENSIONS:
            value, at = self.reader._varint(at, field.end)  # noqa: SLF001 - the same wire format
            found.append(value)
        return found

    def weights(self) -> dict[str, int]:
        found: Counter[str] = Counter()
        for tensor in self.tensors:
            count = math.prod(tensor.dims)
            if bits := self.packed.get(tensor.name):
                found[f"int{bits}"] += count * _BITS.get(tensor.data_type, 8) // bits
            elif tensor.data_type in _FLOATS and tensor.name not in self.aside:
                found["float32" if tensor.data_type == 1 else "float16"] += count
            elif tensor.data_type in {2, 3} and tensor.name not in self.aside and len(tensor.dims) > 1:
                found["int8"] += count
        return dict(found)


def read_graph(path: Path, name: str = "") -> OnnxGraph:
    """Read the graph of a file, which errors call ``name``.

    Raises ModelRejected for one that is none, or that leaves its folder, and OSError.
    """
    name = name or path.name
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise ModelRejected(f"{name} is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(data, name)


def _read(data: mmap.mmap, name: str) -> OnnxGraph:
    reader = _Reader(data, name)
    contents = _Contents(reader)
    opsets: dict[str, int] = {}
    graphs = ir_version = 0
    for part in reader.fields(0, len(data)):
        if part.number == 1 and part.kind == _VARINT:
            ir_version = part.value
        if part.kind != _BYTES:
            continue
        if part.number == 7:
            graphs += 1
            contents.graph(part, 0)
        elif part.number == 8:
            domain, version = "", 0
            for side in reader.fields(part.start, part.end):
                if side.number == 1 and side.kind == _BYTES:
                    domain = reader.text(side)
                elif side.number == 2 and side.kind == _VARINT:
                    version = side.value
            opsets["" if domain == "ai.onnx" else domain] = version
        elif part.number == 20:
            raise ModelRejected(f"{name} carries what a training goes on with; export it for inference")
        elif part.number == 25:
            contents.function(part)
    if graphs != 1 or not opsets:
        raise ModelRejected(f"{name} is no ONNX file: it has no graph, or no version of its operators")
    return OnnxGraph(
        ir_version=ir_version,
        opsets=opsets,
        inputs=tuple(contents.inputs),
        outputs=tuple(contents.outputs),
        operators=dict(contents.operators),
        weights=contents.weights(),
        data_files=_data_files(contents.tensors, name),
    )


def _data_files(tensors: list[_Tensor], graph: str) -> dict[str, int]:
    """Return the files that hold the tensors' data, once all are known to lie beside the graph."""
    found: dict[str, int] = {}
    for tensor in tensors:
        if not tensor.place:
            continue
        name = tensor.place.get("location", "")
        if not name or name in {".", ".."} or "/" in name or "\\" in name or "\0" in name:
            raise ModelRejected(f"{graph} keeps weights in {name[:200]!r}: only files beside it may be named")
        offset, length = (_count(tensor.place.get(key, "0")) for key in ("offset", "length"))
        needed = offset + max(length, math.prod(tensor.dims) * _BITS.get(tensor.data_type, 8) // 8)
        found[name] = max(needed, found.get(name, 0))
    return found


def check_folder(path: Path) -> OnnxGraph:
    """Read a graph and make sure that the files with its weights are beside it, whole and no links.

    Raises ModelRejected, and OSError when a file cannot be read.
    """
    graph = read_graph(path)
    for name, needed in graph.data_files.items():
        data = path.with_name(name)
        if data.is_symlink():
            raise ModelRejected(
                f"{name}, in which {path.name} keeps weights, is a symbolic link: put the file itself there"
            )
        if not data.is_file():
            raise ModelRejected(f"{path.name} keeps weights in {name}, which is missing")
        if (size := data.stat().st_size) < needed:
            raise ModelRejected(
                f"{path.name} looks for {needed} bytes in {name}, which has {size}: it is cut off, or of another model"
            )
    return graph


def _count(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0
