"""The files of an encoder: where they are, and what they say of how it is to be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from agent.encoder import EncoderSpec, EncoderTask, Pooling
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
    spec = model.encoder or _described(config, _object(folder / POOLING))
    if not spec.labels and spec.task in {EncoderTask.CLASSIFY, EncoderTask.TAG}:
        spec = msgspec.structs.replace(spec, labels=_labels(config))
    limit = _object(folder / LENGTH).get("max_seq_length")
    most = min(model.context_tokens, _positions(config), limit if isinstance(limit, int) else model.context_tokens)
    return EncoderFiles(graph, tokenizer, spec, most)


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


def _described(config: dict[str, Any], pooling: dict[str, Any]) -> EncoderSpec:
    """Return what the usual files of such a model say."""
    names = config.get("architectures")
    architecture = str(names[0]) if isinstance(names, list) and names else ""
    if architecture.endswith("ForTokenClassification"):
        return EncoderSpec(task=EncoderTask.TAG)
    if architecture.endswith("ForSequenceClassification"):
        several = config.get("problem_type") == "multi_label_classification"
        single = len(_labels(config)) == 1 or config.get("num_labels") == 1
        return EncoderSpec(task=EncoderTask.RERANK if single else EncoderTask.CLASSIFY, several=several)
    if pooling.get("pooling_mode_cls_token"):
        return EncoderSpec(pooling=Pooling.CLS)
    if pooling.get("pooling_mode_lasttoken"):
        return EncoderSpec(pooling=Pooling.LAST)
    other = [name for name, on in pooling.items() if name.startswith("pooling_mode_") and on]
    if other and other != ["pooling_mode_mean_tokens"]:
        raise ModelUnloadable(f"{POOLING} asks for {', '.join(other)}; there are mean, cls and last token")
    return EncoderSpec()


def _labels(config: dict[str, Any]) -> tuple[str, ...]:
    found = config.get("id2label")
    if not isinstance(found, dict):
        return ()
    try:
        return tuple(str(found[str(number)]) for number in range(len(found)))
    except KeyError as error:
        raise ModelUnloadable(f"id2label of {CONFIG} has no label {error}: they are numbered from 0 on") from None


def _positions(config: dict[str, Any]) -> int:
    found = config.get("max_position_embeddings")
    if not isinstance(found, int) or found < 1:
        return 1 << 20
    pad = config.get("pad_token_id")
    if config.get("model_type") in _SHIFTED_POSITIONS and isinstance(pad, int):
        return found - pad - 1
    return found
