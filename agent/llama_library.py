"""The native library llama.cpp: its processor kernels and its log. For child processes only."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import llama_cpp.llama_cpp as native

_LOG_LEVEL_ERROR = 4

Log = Callable[[int, str], None]
"""Takes a level (1 debug, 2 info, 3 warning, 4 error, 5 more of the last) and a text with its own line ends."""


def log_errors(level: int, text: str) -> None:
    """Write errors to stderr, and nothing else."""
    if level == _LOG_LEVEL_ERROR:
        sys.stderr.write(text)
        sys.stderr.flush()


def load_backends(log: Log = log_errors) -> None:
    """Make the CPU kernels available, for every way in which the library is built.

    A stock build has them linked in. A portable build has one library per CPU family in
    ``site-packages/bin`` and picks the best for this machine, but only when it is told to
    look; the registry lives in ``libggml.so.0``, and any other name is a second, empty one.
    """
    first = not _kept
    _log_to(log)
    if not first:
        return  # a second registration of the kernels would list them twice
    libraries = Path(native.__file__).parent / "lib"
    for folder in (libraries, libraries.parents[1] / "bin"):
        if any(folder.glob("libggml-cpu-*.so")):
            ggml = ctypes.CDLL(str(libraries / "libggml.so.0"))
            ggml.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
            ggml.ggml_backend_load_all_from_path.restype = None
            ggml.ggml_backend_load_all_from_path(str(folder).encode())
            break
    native.llama_backend_init()


_kept: list[object] = []  # the library keeps the pointer only


def _log_to(log: Log) -> None:
    def called(level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
        log(level, text.decode("utf-8", "replace"))

    callback = native.llama_log_callback(called)
    native.llama_log_set(callback, ctypes.c_void_p())
    _kept[:] = [callback]
