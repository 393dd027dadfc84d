"""GGUF to GGUF: llama.cpp writes the tensors anew in another type. Needs no network and no other program."""

from __future__ import annotations

import ctypes
import re
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import llama_cpp.llama_cpp as native
import numpy as np
from numpy.typing import NDArray

from agent.errors import DiskFull, ModelRejected, StorageError
from agent.llama_library import load_backends
from agent.models.gguf_check import check_gguf
from agent.models.recipes.importance import ImportanceFile, importance_for
from agent.models.recipes.job import Job, Made, Progress, Tell
from agent.models.recipes.tensor_types import TARGETS
from agent.types import ModelFormat

_BUFFER = 256 << 20  # bytes of rows kept in memory at once; llama.cpp's own default is 8 GiB
_FULL = 16 << 20  # bytes: with less left, a write that failed has failed for want of space
_ERROR, _MORE = 4, 5  # levels of llama.cpp's log
_STEP = re.compile(r"\[ *(\d+)/ *(\d+)\]")


def make(job: Job, tell: Tell) -> Made:
    """Write ``<output>.gguf``. Raises ModelRejected, DiskFull, StorageError."""
    target = TARGETS[job.recipe]
    source, made = Path(job.source), Path(job.folder) / f"{job.output}.gguf"
    importance = None
    if target.importance and job.importance != "none":
        importance = importance_for(job, tell)
    partial = made.with_name(f".partial-{made.name}")
    _quantize(source, partial, target.ftype, job.threads, importance, tell)
    if check_gguf(partial).shapes != check_gguf(source).shapes:
        raise ModelRejected(f"{made.name} does not hold the tensors of {source.name}: it is not kept")
    partial.replace(made)
    return Made(
        files=(made.name,),
        format=ModelFormat.GGUF,
        versions={"llama.cpp": native.llama_version().decode(), "llama-cpp-python": version("llama-cpp-python")},
        inputs={"importance": importance.digest} if importance else {},
    )


def _quantize(
    source: Path, output: Path, ftype: int, threads: int, importance: ImportanceFile | None, tell: Tell
) -> None:
    errors: list[str] = []

    def follow(level: int, text: str) -> None:
        if level == _ERROR or (level == _MORE and errors):
            errors.append(text.strip())
        elif found := _STEP.match(text):
            tell(Progress(step="quantizing", done=int(found[1]), total=int(found[2])))

    load_backends(follow)
    parameters = native.llama_model_quantize_default_params()
    parameters.ftype = ftype
    parameters.nthread = threads
    parameters.allow_requantize = True  # whether the source may be used was decided before
    parameters.max_buf_size = _BUFFER
    table = _table(importance.means) if importance else None
    if table is not None:
        parameters.imatrix = table
    status = native.llama_model_quantize(str(source).encode(), str(output).encode(), ctypes.byref(parameters))
    if status == 0:
        return
    output.unlink(missing_ok=True)
    reason = errors[-1] if errors else "it gave no reason"
    if shutil.disk_usage(output.parent).free < _FULL:
        raise DiskFull(f"the disk of {output.parent} is full; free some space and run it again")
    if "ios" in reason:  # what C++ says when a write has failed
        raise StorageError(f"{output.parent} cannot be written to: {reason}")
    raise ModelRejected(f"llama.cpp cannot quantize {source.name}: {reason}")


def _table(means: Mapping[str, NDArray[np.float32]]) -> ctypes.Array[native.llama_model_imatrix_data]:
    """Return the rows for llama.cpp, the last one empty. They point into ``means``."""
    rows = (native.llama_model_imatrix_data * (len(means) + 1))()
    for row, (name, values) in zip(rows, means.items(), strict=False):
        row.name = name.encode()
        row.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        row.size = values.size
    return rows
