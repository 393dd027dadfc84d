"""Weights of a form that a processor computes slowly, held in memory in one that it computes fast.

llama.cpp multiplies Q4_1 and Q5_1 on x86 block by block, and has fast kernels for Q8_0. The same
weights as Q8_0 take half as much memory again and compute prompts about twice as fast. What the
8-bit steps round off is no more than the order of the sums in these kernels changes anyway:
measured on SmolLM2 as Q4_1, the answers of the file as it is in batches of 8 and of 512 tokens
differ by 0.004 nats of KL divergence, those of the two forms by 0.006, and to the weights
as F32 it is 0.0036 from the one and 0.0046 from the other.

The worker may not write a file once it is locked in: the room, an unnamed file in memory that is
large and empty, is made before that, and filled through its mapping. It is read from there once: memory
of its own can have huge pages, which a file in memory mostly has not.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from agent import device
from agent.compute import WeightLayout
from agent.engine import frames
from agent.engine.memory_room import memory_room
from agent.types import ModelFile, ModelFormat

_NATIVE = "llama_cpp.llama_cpp"
_ROOMS = "/proc/self/fd/"
STORED_AS = "outrider.stored_as"  # a key of the metadata in memory: the form of the file
MOST_BYTES = 256 << 20  # beyond, memory decides how fast tokens are drawn, and a larger form is slower
MEMORY_SHARE = 0.25  # of what is free, for the room at most
PIECE_VALUES = 1 << 19  # converted at once by a thread
BLOCK = 32
FORM, FORM_CODE, FILE_TYPE, BLOCK_BYTES = "Q8_0", 8, 7, 34  # ggml's number of the form, llama.cpp's of such a file


class _Slow(NamedTuple):
    name: str
    block_bytes: int
    reads: str  # the function of libggml-base that makes float32 of it


SLOW = {3: _Slow("Q4_1", 20, "dequantize_row_q4_1"), 7: _Slow("Q5_1", 24, "dequantize_row_q5_1")}


class _InitParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def make_room(load: frames.Load) -> int | None:
    """Return a descriptor of the room for a model's weights; None where they stay as they are stored.

    To be called before the process locks itself in. Nothing is read of the model.
    """
    wanted = load.weights is WeightLayout.FAST and load.model.format is ModelFormat.GGUF
    # The library loads before the lock or not at all, and a runtime without it has no use for its forms.
    wanted = wanted and _NATIVE in sys.modules
    if not wanted or platform.machine() not in {"x86_64", "AMD64"} or not hasattr(os, "memfd_create"):
        return None
    room = os.memfd_create("weights", os.MFD_CLOEXEC)
    os.truncate(room, MOST_BYTES)  # takes no memory
    return room


def relaid(load: frames.Load, room: int | None) -> frames.Load:
    """Return the order to load the weights from the room, or ``load`` where that is no gain or has no room.

    What the file lacks or has wrong is left for the load to find.
    """
    if room is None:
        return load
    most = min(MOST_BYTES, int(memory_room(load.memory_bytes) * MEMORY_SHARE))
    if not _lay_out(Path(load.model.path), room, most):
        os.close(room)
        return load
    model = msgspec.structs.replace(load.model, path=f"{_ROOMS}{room}")
    return msgspec.structs.replace(load, model=model)


def is_relaid(model: ModelFile) -> bool:
    """Return whether the weights lie in a room."""
    return model.path.startswith(_ROOMS)


def leave(model: ModelFile) -> None:
    """Give the room back once the weights are copied out of it."""
    os.close(int(model.path.removeprefix(_ROOMS)))


def _lay_out(path: Path, room: int, most: int) -> bool:
    """Write the model with fast weights into the room; False, with nothing written, where that cannot be."""
    base = _library()
    metadata = base.gguf_init_from_file(os.fsencode(path), _InitParams(no_alloc=True, ctx=None))
    if not metadata:
        return False
    try:
        if base.gguf_find_key(metadata, b"split.count") >= 0:
            return False
        tensors = _tensors(base, metadata)
        slow = {SLOW[tensor.form].name for tensor in tensors if tensor.form in SLOW}
        if not slow:
            return False
        begin = base.gguf_get_data_offset(metadata)
        for tensor in tensors:
            if tensor.form in SLOW:
                base.gguf_set_tensor_type(metadata, tensor.name, FORM_CODE)
        base.gguf_set_val_u32(metadata, b"general.file_type", FILE_TYPE)
        base.gguf_set_val_str(metadata, STORED_AS.encode(), "+".join(sorted(slow)).encode())
        head = base.gguf_get_meta_size(metadata)
        after = _tensors(base, metadata)
        size = head + max(tensor.offset + tensor.size for tensor in after)
        last = begin + max(tensor.offset + tensor.size for tensor in tensors)
        if size > most or last > path.stat().st_size:
            return False
        os.truncate(room, size)
        with _mapped(path) as source, mmap.mmap(room, size) as target:
            address = ctypes.addressof(ctypes.c_char.from_buffer(target))
            base.gguf_get_meta_data(metadata, ctypes.c_void_p(address))
            pieces = [
                piece
                for old, new in zip(tensors, after, strict=True)
                for piece in _pieces(old, source + begin + old.offset, address + head + new.offset)
            ]
            with ThreadPoolExecutor(device.profile().decode_threads) as threads:
                for _ in threads.map(lambda piece: _convert(base, *piece), pieces):
                    pass
    finally:
        base.gguf_free(metadata)
    return True


class _Tensor(NamedTuple):
    name: bytes
    form: int
    offset: int  # from the beginning of the data, bytes
    size: int  # bytes


def _tensors(base: Any, metadata: int) -> list[_Tensor]:
    return [
        _Tensor(
            base.gguf_get_tensor_name(metadata, index),
            base.gguf_get_tensor_type(metadata, index),
            base.gguf_get_tensor_offset(metadata, index),
            base.gguf_get_tensor_size(metadata, index),
        )
        for index in range(base.gguf_get_n_tensors(metadata))
    ]


def _pieces(tensor: _Tensor, source: int, target: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield form, both addresses and the number of values (of bytes, where it stays as it is)."""
    if tensor.form not in SLOW:
        yield -1, source, target, tensor.size
        return
    blocks = tensor.size // SLOW[tensor.form].block_bytes
    step = PIECE_VALUES // BLOCK
    for first in range(0, blocks, step):
        values = min(step, blocks - first) * BLOCK
        yield tensor.form, source + first * SLOW[tensor.form].block_bytes, target + first * BLOCK_BYTES, values


def _convert(base: Any, form: int, source: int, target: int, count: int) -> None:
    if form < 0:
        ctypes.memmove(target, source, count)
        return
    values = (ctypes.c_float * count)()
    getattr(base, SLOW[form].reads)(ctypes.c_void_p(source), values, count)
    base.ggml_quantize_chunk(FORM_CODE, values, ctypes.c_void_p(target), 0, 1, count, None)


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[int]:
    """Map a file; give the address of its first byte."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as data:
        view = ctypes.c_char.from_buffer(data)
        try:
            yield ctypes.addressof(view)
        finally:
            del view


def _library() -> Any:
    """Return libggml-base with the types of what is used of it."""
    base = ctypes.CDLL(str(Path(str(sys.modules[_NATIVE].__file__)).parent / "lib" / "libggml-base.so.0"))
    pointer, text, int64, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64, ctypes.c_size_t
    floats = ctypes.POINTER(ctypes.c_float)
    types = {
        "gguf_init_from_file": (pointer, text, _InitParams),
        "gguf_free": (None, pointer),
        "gguf_find_key": (int64, pointer, text),
        "gguf_get_n_tensors": (int64, pointer),
        "gguf_get_tensor_name": (text, pointer, int64),
        "gguf_get_tensor_type": (ctypes.c_int, pointer, int64),
        "gguf_get_tensor_offset": (size, pointer, int64),
        "gguf_get_tensor_size": (size, pointer, int64),
        "gguf_get_data_offset": (size, pointer),
        "gguf_get_meta_size": (size, pointer),
        "gguf_get_meta_data": (None, pointer, pointer),
        "gguf_set_tensor_type": (None, pointer, text, ctypes.c_int),
        "gguf_set_val_u32": (None, pointer, text, ctypes.c_uint32),
        "gguf_set_val_str": (None, pointer, text, text),
        "ggml_quantize_chunk": (size, ctypes.c_int, floats, pointer, int64, int64, int64, floats),
        **{slow.reads: (None, pointer, floats, int64) for slow in SLOW.values()},
    }
    for name, (result, *arguments) in types.items():
        function = getattr(base, name)
        function.restype, function.argtypes = result, arguments
    return base
