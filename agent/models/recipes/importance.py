"""Which inputs of each matrix matter: the mean square of its input columns over a text.

Rounding errors weigh as much as what they are multiplied with. llama.cpp's quantizers take
that mean square per column and put the precision where it counts. It is collected here from
the very model, with the callback that llama.cpp offers for every result of its graph, or read
from a file of ``llama-imatrix`` (GGUF, or the older binary form).
"""

from __future__ import annotations

import ctypes
import hashlib
import struct
import zipfile
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as native
import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.errors import ModelRejected
from agent.llama_library import load_backends
from agent.models.gguf_check import check_gguf
from agent.models.recipes.job import Job, Progress, Tell

Means = dict[str, NDArray[np.float32]]

TEXT = Path(__file__).with_name("calibration.txt")
_CHUNK = 512  # tokens that the model sees at once
_MOST_TOKENS = 4096
_FEWEST_ROWS = 16  # a batch of fewer is no prompt
_MOST_ENTRIES = 65_536
_SUMS, _COUNTS = ".in_sum2", ".counts"


class ImportanceFile(msgspec.Struct, frozen=True):
    """An importance matrix and where it came from."""

    means: Means  # by tensor name, one value for each input column (and expert)
    digest: str  # SHA-256 of the text or of the file


class _Tensor(ctypes.Structure):
    """The beginning of ``struct ggml_tensor``; `_checked` sees whether it is what the library has."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int32),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


def importance_for(job: Job, tell: Tell) -> ImportanceFile:
    """Return what the job asks for: its file, or what the model itself shows. Raises ModelRejected."""
    if job.importance != "auto":
        return read(Path(job.importance))
    digest = hashlib.sha256(TEXT.read_bytes()).hexdigest()
    kept = Path(job.folder) / f"importance-{digest[:16]}.npz"
    try:
        with np.load(kept, allow_pickle=False) as stored:
            return ImportanceFile(dict(stored), digest)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        pass  # not made yet, or cut short
    means = _Collector(Path(job.source), job.threads).collect(TEXT.read_text(encoding="utf-8"), tell)
    temporary = kept.with_name(f".{kept.name}")
    with temporary.open("wb") as file:
        np.savez(file, **means)  # type: ignore[arg-type]  # the stub takes any keyword for allow_pickle
    temporary.replace(kept)
    return ImportanceFile(means, digest)


class _Collector:
    """Runs a text through a model and adds up the squares of what goes into each matrix."""

    def __init__(self, path: Path, threads: int) -> None:
        self._path = path
        self._threads = threads
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._rows: dict[str, int] = {}
        self._fault: BaseException | None = None
        self._library: Any = native._lib  # noqa: SLF001  # ggml's own functions are not in the bindings
        self._library.ggml_op_name.restype = ctypes.c_char_p
        self._library.ggml_get_name.argtypes = [ctypes.c_void_p]
        self._library.ggml_get_name.restype = ctypes.c_char_p
        names = {self._library.ggml_op_name(number): number for number in range(64)}
        self._product = names[b"MUL_MAT"]

    def collect(self, text: str, tell: Tell) -> Means:
        load_backends()
        model_options = native.llama_model_default_params()
        model_options.n_gpu_layers = 0
        model = native.llama_model_load_from_file(str(self._path).encode(), model_options)
        if not model:
            raise ModelRejected(f"llama.cpp cannot load {self._path.name}")
        options = native.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = _CHUNK
        options.n_threads = options.n_threads_batch = self._threads
        options.no_perf = True
        callback = native.ggml_backend_sched_eval_callback(self._seen)
        options.cb_eval = callback
        context = native.llama_init_from_model(model, options)
        if not context:
            native.llama_model_free(model)
            raise ModelRejected(f"llama.cpp cannot make a context for {self._path.name}")
        try:
            self._run(model, context, text, tell)
        finally:
            native.llama_free(context)
            native.llama_model_free(model)
        return {name: (sums / self._rows[name]).astype(np.float32) for name, sums in self._sums.items()}

    def _run(self, model: Any, context: Any, text: str, tell: Tell) -> None:
        tokens = _tokens(model, text.encode())
        chunks = [tokens[start : start + _CHUNK] for start in range(0, len(tokens), _CHUNK)]
        for number, chunk in enumerate(chunks):
            tell(Progress(step="finding what matters", done=number, total=len(chunks)))
            native.llama_memory_clear(native.llama_get_memory(context), True)
            array = (native.llama_token * len(chunk))(*chunk)
            status = native.llama_decode(context, native.llama_batch_get_one(array, len(chunk)))
            if self._fault is not None:
                raise self._fault
            if status:
                raise ModelRejected(f"llama.cpp cannot run {self._path.name} on a text: status {status}")

    def _seen(self, address: int, asked: bool, _user_data: int) -> bool:
        try:
            return self._look(address, asked=asked)
        except BaseException as error:  # it must not go through the native library
            self._fault = error
            return False

    def _look(self, address: int, *, asked: bool) -> bool:
        tensor = self._checked(address)
        if tensor.op != self._product:
            return False
        weights, inputs = (_Tensor.from_address(source) for source in tensor.src[:2])
        name = weights.name.decode("utf-8", "replace")
        # Matrices of several experts are left out: their inputs are chosen row by row.
        if not name.startswith("blk.") or weights.ne[2] != 1 or inputs.type != 0 or inputs.ne[1] < _FEWEST_ROWS:
            return False
        if asked:
            return True
        columns, rows = inputs.ne[0], inputs.ne[1] * inputs.ne[2] * inputs.ne[3]
        if inputs.nb[0] != 4 or inputs.nb[1] != 4 * columns or not inputs.data:
            return True
        values = np.ctypeslib.as_array(ctypes.cast(inputs.data, ctypes.POINTER(ctypes.c_float)), (rows, columns))
        squares = np.einsum("ij,ij->j", values, values, dtype=np.float64)
        if not np.isfinite(squares).all():
            raise ModelRejected(f"{self._path.name} computes numbers that are not finite, at {name}")
        self._sums[name] = self._sums.get(name, 0) + squares
        self._rows[name] = self._rows.get(name, 0) + rows
        return True

    def _checked(self, address: int) -> _Tensor:
        tensor = _Tensor.from_address(address)
        if tensor.name != self._library.ggml_get_name(address):
            raise ModelRejected("this build of llama.cpp lays out its tensors otherwise; use --no-importance")
        return tensor


def _tokens(model: Any, text: bytes) -> list[int]:
    vocabulary = native.llama_model_get_vocab(model)
    room = len(text)
    buffer = (native.llama_token * room)()
    count = native.llama_tokenize(vocabulary, text, len(text), buffer, room, True, False)
    if count < 0:  # it says how many there are
        room = -count
        buffer = (native.llama_token * room)()
        count = native.llama_tokenize(vocabulary, text, len(text), buffer, room, True, False)
    if count < _FEWEST_ROWS:
        raise ModelRejected("the tokenizer of this model makes nothing of the calibration text")
    return list(buffer[: min(count, _MOST_TOKENS)])


def read(path: Path) -> ImportanceFile:
    """Read a file of llama-imatrix. Raises ModelRejected with what does not hold."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelRejected(f"the importance matrix {path} cannot be read: {error.strerror}") from error
    means = _of_gguf(path, data) if data[:4] == b"GGUF" else _of_old_form(path, data)
    if not means or not all(np.isfinite(values).all() for values in means.values()):
        raise ModelRejected(f"{path} holds no importance matrix, or one with numbers that are not finite")
    return ImportanceFile(means, hashlib.sha256(data).hexdigest())


def _of_gguf(path: Path, data: bytes) -> Means:
    header = check_gguf(path, weights=False)
    means: Means = {}
    for name, (start, size) in header.places.items():
        counts = header.places.get(name.removesuffix(_SUMS) + _COUNTS)
        if not name.endswith(_SUMS) or counts is None or header.types[name] != 0:
            continue
        sums = np.frombuffer(data, "<f4", size // 4, start)
        count = np.frombuffer(data, "<f4", counts[1] // 4, counts[0])
        if sums.size % count.size:
            raise ModelRejected(f"{path}: {name} does not fit its counts")
        rows = sums.reshape(count.size, -1)
        some = np.maximum(count, 1)[:, None]
        means[name.removesuffix(_SUMS)] = np.where(count[:, None] > 0, rows / some, 1).astype(np.float32).ravel()
    return means


def _of_old_form(path: Path, data: bytes) -> Means:
    at = 0

    def number() -> int:
        nonlocal at
        (value,) = struct.unpack_from("<i", data, at)
        at += 4
        return int(value)

    def taken(count: int) -> bytes:
        nonlocal at
        if not 0 <= count <= len(data) - at:
            raise ValueError("a length reaches past the end")
        at += count
        return data[at - count : at]

    means: Means = {}
    try:
        entries = number()
        for _ in range(entries if 0 < entries <= _MOST_ENTRIES else 0):
            name = taken(number()).decode()
            calls, values = number(), number()
            sums = np.frombuffer(taken(4 * values), "<f4")
            means[name] = (sums / max(calls, 1)).astype(np.float32)
    except (struct.error, ValueError) as error:
        raise ModelRejected(f"{path} is not an importance matrix of llama.cpp: {error}") from error
    return means
