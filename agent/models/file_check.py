"""Is each file of a model what its format says? Asked before a file gets its place, and at each verification.

Pure Python; weights are not read. The digest says that a file is the one that was meant, this that
the native libraries can be given it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from agent.errors import ModelRejected
from agent.models.artifact import StoredModel
from agent.models.gguf_check import check_gguf
from agent.models.onnx_check import check_onnx
from agent.models.safetensors_check import check_safetensors
from agent.types import ModelFormat

_LONGEST_JSON = 128 << 20  # bytes; tokenizers with large vocabularies have tens of MB


def check_file(model: StoredModel, name: str, path: Path) -> None:
    """Look into the file that ``model`` has under ``name``. Raises ModelRejected with what is wrong."""
    if model.format is ModelFormat.GGUF:
        _check_gguf(model, name, path)
    elif name.endswith(".onnx"):
        check_onnx(path, {file.name: file.bytes for file in model.files}, name)
    elif name.endswith(".safetensors"):
        check_safetensors(path)
    elif name.endswith(".json"):
        _check_json(name, path)


def check_model(model: StoredModel, files: Mapping[str, Path]) -> None:
    """Look into all files of a model, wherever they are now. Raises ModelRejected."""
    for file in model.files:
        check_file(model, file.name, files[file.name])


def _check_gguf(model: StoredModel, name: str, path: Path) -> None:
    header = check_gguf(path)
    if header.context_tokens is not None and header.context_tokens < model.context_tokens:
        raise ModelRejected(
            f"{model.context_tokens} tokens of context are claimed for {name}, the file says {header.context_tokens}"
        )


def _check_json(name: str, path: Path) -> None:
    if (size := path.stat().st_size) > _LONGEST_JSON:
        raise ModelRejected(f"{name} has {size} bytes, too many for what it should be")
    try:
        msgspec.json.decode(path.read_bytes(), type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ModelRejected(f"{name} is not JSON: {error}") from error
