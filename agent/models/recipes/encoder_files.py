"""The files of an ONNX encoder: a flat folder with one graph, its tokenizer and what describes them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import onnx

from agent.errors import InvalidRequest, ModelRejected
from agent.models.size_limit import size_fault

GRAPH = "model.onnx"
_DESCRIPTIONS = frozenset({".json", ".txt", ".model"})
_INTEGER_OPERATORS = frozenset({
    "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulInteger", "QLinearMatMul", "QuantizeLinear",
    "DequantizeLinear", "MatMulNBits", "GatherBlockQuantized",
})  # fmt: skip


def read_graph(folder: Path, *, force: bool) -> onnx.ModelProto:
    """Return the graph of a folder with its weights in memory.

    Raises ModelRejected for what is no whole graph, or was quantized before; InvalidRequest
    above the limit of weights, unless forced.
    """
    path = folder / GRAPH
    try:
        graph = onnx.load(path)
        onnx.checker.check_model(str(path))  # by path: a graph above 2 GiB has its weights beside it
    except OSError as error:
        raise ModelRejected(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # the parser's and the checker's own errors have no common base
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelRejected(f"{path} is not a whole ONNX model: {reason[:300]}") from error
    if found := sorted({node.op_type for node in graph.graph.node} & _INTEGER_OPERATORS):
        raise ModelRejected(
            f"{path} is quantized already ({', '.join(found)}): what was rounded away does not come back; "
            "start from the FP32 model"
        )
    if (fault := size_fault(folder.name, count_weights(graph))) and not force:
        raise InvalidRequest(f"{fault}. Use --force to make it all the same", param="model")
    return graph


def count_weights(graph: onnx.ModelProto) -> int:
    """Return how many values the stored tensors have; scalars are settings, not weights."""
    return sum(math.prod(tensor.dims) for tensor in graph.graph.initializer if len(tensor.dims) > 0)


def copy_descriptions(source: Path, folder: Path) -> tuple[str, ...]:
    """Copy tokenizer and settings; return their names."""
    names = []
    for path in sorted(source.iterdir()):
        if path.suffix in _DESCRIPTIONS and path.is_file():
            shutil.copyfile(path, folder / path.name)
            names.append(path.name)
    return tuple(names)


def longest_input(folder: Path) -> int | None:
    """Return how many tokens the model was made for at most, as its settings say it; None: they do not.

    ``max_seq_length`` of sentence-transformers is the smaller promise of the two where both stand.
    """
    limits = [
        _figure(folder / "sentence_bert_config.json", "max_seq_length"),
        _figure(folder / "config.json", "max_position_embeddings"),
        _figure(folder / "tokenizer_config.json", "model_max_length"),
    ]
    # Tokenizers without a limit write 1e30.
    known = [limit for limit in limits if limit is not None and limit < 1 << 24]
    return min(known) if known else None


def _figure(path: Path, key: str) -> int | None:
    try:
        found: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    value = found.get(key) if isinstance(found, dict) else None
    return value if type(value) is int and value > 0 else None
