"""The files of a generative ONNX model outside of the store, as onnxruntime-genai's builder writes them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from agent.errors import ModelRejected
from agent.models.onnx_check import check_onnx

DESCRIPTION = "genai_config.json"
NAMES = re.compile(r"[\w.-]+\.onnx(?:[._]data)?|genai_config\.json")
_MOST_BYTES = 16 << 20
_MOST_TOKENS = 1 << 24


class OnnxFolder(NamedTuple):
    """What its files say of a model."""

    parameters: int
    context_tokens: int | None


def is_complete(names: Collection[str]) -> bool:
    """Whether files of these names can be such a model."""
    return {DESCRIPTION, "tokenizer.json"} <= set(names) and any(name.endswith(".onnx") for name in names)


def look_at(paths: Mapping[str, Path]) -> OnnxFolder:
    """Check the graphs and read the description. Raises ModelRejected."""
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    graphs = [check_onnx(path, sizes) for name, path in paths.items() if name.endswith(".onnx")]
    if sizes[DESCRIPTION] > _MOST_BYTES:
        raise ModelRejected(f"{DESCRIPTION} has more than {_MOST_BYTES >> 20} MiB")
    try:
        told = msgspec.json.decode(paths[DESCRIPTION].read_bytes())
        context = told["model"].get("context_length")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise ModelRejected(f"{DESCRIPTION} does not describe a model: {error}") from error
    known = type(context) is int and 0 < context < _MOST_TOKENS
    return OnnxFolder(sum(graph.parameters for graph in graphs), context if known else None)
