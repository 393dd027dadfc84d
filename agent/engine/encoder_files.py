"""The files of an encoder: where they are, and what they say of how it is to be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from agent.encoder import EncoderSpec, EncoderTask, labels, spec_of_files
from agent.engine.refusals import ModelUnloadable
from agent.types import ModelFile

GRAPH, TOKENIZER, CONFIG = "model.onnx", "tokenizer.json", "config.json"
POOLING, LENGTH = "pooling_config.json", "sentence_bert_config.json"
# Architectures whose first positions are taken: the number of the padding token, and one more.
_SHIFTED_POSITIONS = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet", "longformer"})


class EncoderFiles(NamedTuple):
    """An encoder on disk."""

    graph: Path
    tokenizer: Path
    spec: EncoderSpec  # with its labels, where it has any
    most_tokens: int  # of one input, with the marks around it


def encoder_files(model: ModelFile) -> EncoderFiles:
    """Return the files of a model after a look at them. Raises ModelUnloadable."""
    folder = Path(model.path)
    if not folder.is_dir():
        raise ModelUnloadable(f"{folder} is not a folder with {GRAPH} and {TOKENIZER}")
    graph, tokenizer = _graph(folder), _regular(folder / TOKENIZER, "an encoder is not read without its tokenizer")
    config = _object(folder / CONFIG)
    try:
        spec = model.encoder or spec_of_files(config, _object(_pooling(folder)))
        if not spec.labels and spec.task in {EncoderTask.CLASSIFY, EncoderTask.TAG}:
            spec = msgspec.structs.replace(spec, labels=labels(config))
    except ValueError as error:
        raise ModelUnloadable(str(error)) from None
    limit = _object(folder / LENGTH).get("max_seq_length")
    most = min(model.context_tokens, _positions(config), limit if isinstance(limit, int) else model.context_tokens)
    return EncoderFiles(graph, tokenizer, spec, most)


def _pooling(folder: Path) -> Path:
    nested = folder / "1_Pooling" / CONFIG  # as sentence-transformers lays it; a model of the store is flat
    return nested if nested.exists() else folder / POOLING


def _graph(folder: Path) -> Path:
    if not (folder / GRAPH).exists():
        found = sorted(folder.glob("*.onnx"))
        if len(found) == 1:
            return _regular(found[0], "")
        what = "several .onnx files" if found else "no .onnx file"
        raise ModelUnloadable(f"{folder} holds {what}: one must be called {GRAPH}")
    return _regular(folder / GRAPH, "")


def _regular(path: Path, need: str) -> Path:
    if path.is_symlink():
        raise ModelUnloadable(f"{path.name} is a symbolic link: put the file itself there (cp -L)")
    if not path.is_file():
        raise ModelUnloadable(f"{path.name} is missing in {path.parent}" + (f": {need}" if need else ""))
    return path


def _object(path: Path) -> dict[str, Any]:
    """Return what a file says; nothing where there is none."""
    if not path.exists():
        return {}
    try:
        found = msgspec.json.decode(_regular(path, "").read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelUnloadable(f"{path.name} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ModelUnloadable(f"{path.name} is no JSON object")
    return found


def _positions(config: dict[str, Any]) -> int:
    found = config.get("max_position_embeddings")
    if not isinstance(found, int) or found < 1:
        return 1 << 20
    pad = config.get("pad_token_id")
    if config.get("model_type") in _SHIFTED_POSITIONS and isinstance(pad, int):
        return found - pad - 1
    return found
