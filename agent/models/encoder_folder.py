"""The files of an ONNX encoder outside of the store: a graph, its tokenizer, and what they are described by."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from agent.encoder import EncoderSpec, spec_of_files
from agent.errors import ModelRejected
from agent.models.onnx_check import check_onnx
from agent.onnx_graph import OnnxGraph

CONFIG, POOLING, LENGTH = "config.json", "pooling_config.json", "sentence_bert_config.json"
NAMES = re.compile(
    r"model\.onnx(?:[._]data)?|config\.json|tokenizer(?:_config)?\.json|special_tokens_map\.json|vocab\.txt"
    r"|pooling_config\.json|sentence_bert_config\.json"
)
_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids", "position_ids"})
_MOST_BYTES = 16 << 20
_MOST_TOKENS = 1 << 24


class EncoderFolder(NamedTuple):
    """What its files say of an encoder."""

    parameters: int
    context_tokens: int | None
    spec: EncoderSpec


def is_complete(names: Collection[str]) -> bool:
    """Whether files of these names can be an encoder: one that writes has a genai_config.json."""
    return {"model.onnx", "tokenizer.json", CONFIG} <= set(names) and "genai_config.json" not in names


def files_in(folder: Path) -> dict[str, Path]:
    """Return the files of an encoder by the names that the store gives them."""
    found = {path.name: path for path in sorted(folder.iterdir()) if NAMES.fullmatch(path.name)}
    nested = folder / "1_Pooling" / CONFIG  # as sentence-transformers lays it
    return found | ({POOLING: nested} if nested.is_file() else {})


def look_at(paths: Mapping[str, Path]) -> EncoderFolder:
    """Check the graph and read what describes it. Raises ModelRejected."""
    graph = check_onnx(paths["model.onnx"], {name: path.stat().st_size for name, path in paths.items()})
    _require_inputs(graph)
    config = _object(paths, CONFIG)
    limits = (config.get("max_position_embeddings"), _object(paths, LENGTH).get("max_seq_length"))
    known = [limit for limit in limits if type(limit) is int and 0 < limit < _MOST_TOKENS]
    return EncoderFolder(graph.parameters, min(known, default=None), read_spec(paths))


def read_spec(paths: Mapping[str, Path]) -> EncoderSpec:
    """Return what the files say of task and pooling. Raises ModelRejected."""
    try:
        return spec_of_files(_object(paths, CONFIG), _object(paths, POOLING))
    except ValueError as error:
        raise ModelRejected(f"the files of the encoder say what cannot be: {error}") from error


def _require_inputs(graph: OnnxGraph) -> None:
    given = set(graph.inputs)
    if "input_ids" not in given or not given <= _INPUTS:
        raise ModelRejected(
            f"model.onnx has the inputs {', '.join(graph.inputs)[:200]}; an encoder has input_ids and, where it wants "
            "them, attention_mask, token_type_ids and position_ids; a model that writes comes with genai_config.json"
        )


def _object(paths: Mapping[str, Path], name: str) -> dict[str, Any]:
    if name not in paths:
        return {}
    if paths[name].stat().st_size > _MOST_BYTES:
        raise ModelRejected(f"{name} has more than {_MOST_BYTES >> 20} MiB")
    try:
        return msgspec.json.decode(paths[name].read_bytes(), type=dict[str, Any])
    except (ValueError, RecursionError) as error:
        raise ModelRejected(f"{name} is no JSON object: {error}") from error
