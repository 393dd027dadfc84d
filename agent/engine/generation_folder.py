"""The folder of a generative ONNX model, as onnxruntime-genai has it.

``genai_config.json`` says what the graph's inputs are called and how its keys and values are laid
out. All files lie in one flat folder; none may be a link or lie elsewhere.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from agent.engine.runtime import ModelUnloadable
from agent.errors import ModelRejected
from agent.onnx_graph import OnnxGraph, check_folder

MOST_BYTES = 16 << 20  # of a description
_Count = Annotated[int, Meta(ge=1, le=1 << 24)]
_Name = Annotated[str, Meta(min_length=1, max_length=200)]


class _Inputs(msgspec.Struct):
    input_ids: _Name = "input_ids"
    attention_mask: _Name = "attention_mask"
    position_ids: _Name = "position_ids"
    past_key_names: _Name = "past_key_values.%d.key"
    past_value_names: _Name = "past_key_values.%d.value"


class _Outputs(msgspec.Struct):
    logits: _Name = "logits"
    present_key_names: _Name = "present.%d.key"
    present_value_names: _Name = "present.%d.value"


class Decoder(msgspec.Struct):
    """The part of the configuration that describes the graph."""

    filename: _Name
    head_size: _Count
    num_hidden_layers: Annotated[int, Meta(ge=1, le=1024)]
    num_key_value_heads: _Count
    inputs: _Inputs = msgspec.field(default_factory=_Inputs)
    outputs: _Outputs = msgspec.field(default_factory=_Outputs)


class _Model(msgspec.Struct):
    type: str
    vocab_size: _Count
    context_length: _Count
    decoder: Decoder
    eos_token_id: int | list[int] | None = None
    encoder: Any = None
    vision: Any = None
    speech: Any = None


class _Search(msgspec.Struct):
    past_present_share_buffer: bool = False


class _Config(msgspec.Struct):
    model: _Model
    search: _Search = msgspec.field(default_factory=_Search)


class GenerationFolder(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a model before its graph is loaded."""

    path: Path
    kind: str  # "llama", "qwen3"
    decoder: Decoder
    shares_buffer: bool  # whether the graph writes new keys and values into the buffer with the old ones
    graph: OnnxGraph
    vocabulary_size: int
    context_tokens: int
    ends: tuple[int, ...]  # tokens that end an answer, as far as the configuration names them
    chat_template: str | None
    bos: str  # texts; "" where the model has none
    eos: str

    @property
    def graph_path(self) -> Path:
        return self.path / self.decoder.filename

    @property
    def weight_bytes(self) -> int:
        """Bytes of the graph and of the files that hold its weights."""
        files = (self.decoder.filename, *self.graph.data_files)
        return sum((self.path / name).stat().st_size for name in files)


def read_folder(path: Path) -> GenerationFolder:
    """Read and check the descriptions. Raises ModelUnloadable, with the file at fault."""
    if not path.is_dir():
        raise ModelUnloadable(f"{path.name} is no folder with the files of a model")
    if links := sorted(file.name for file in path.iterdir() if file.is_symlink()):
        raise ModelUnloadable(f"{links[0]} is a symbolic link: put the file itself into the model's folder")
    config = _described(path / "genai_config.json")
    model, decoder = config.model, config.model.decoder
    if any(part is not None for part in (model.encoder, model.vision, model.speech)):
        raise ModelUnloadable("genai_config.json names several graphs: models of one decoder can be run")
    if "/" in decoder.filename or "\\" in decoder.filename or decoder.filename.startswith("."):
        raise ModelUnloadable(f"genai_config.json names the graph {decoder.filename!r}: it must lie in the same folder")
    try:
        graph = check_folder(path / decoder.filename)
    except ModelRejected as error:
        raise ModelUnloadable(str(error)) from error
    except OSError as error:
        raise ModelUnloadable(f"{decoder.filename} cannot be read: {error.strerror}") from error
    told = _object(path / "tokenizer_config.json", needed=False)
    ends = [model.eos_token_id] if isinstance(model.eos_token_id, int) else model.eos_token_id or []
    return GenerationFolder(
        path=path,
        kind=model.type,
        decoder=decoder,
        shares_buffer=config.search.past_present_share_buffer,
        graph=graph,
        vocabulary_size=model.vocab_size,
        context_tokens=model.context_length,
        ends=tuple(end for end in ends if 0 <= end < model.vocab_size),
        chat_template=_template(path, told),
        bos=_token_text(told.get("bos_token")),
        eos=_token_text(told.get("eos_token")),
    )


def _described(path: Path) -> _Config:
    try:
        return msgspec.convert(_object(path, needed=True), _Config)
    except msgspec.ValidationError as error:
        raise ModelUnloadable(f"{path.name} does not describe a decoder: {error}") from error


def _object(path: Path, *, needed: bool) -> dict[str, Any]:
    text = _text(path, needed=needed)
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelUnloadable(f"{path.name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ModelUnloadable(f"{path.name} is not a JSON object")
    return found


def _text(path: Path, *, needed: bool) -> str | None:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ModelUnloadable(f"{path.name} has more than {MOST_BYTES >> 20} MiB")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if needed:
            raise ModelUnloadable(f"{path.name} is missing in the model's folder") from None
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelUnloadable(f"{path.name} cannot be read: {error}") from error


def _template(path: Path, told: dict[str, Any]) -> str | None:
    """Return the chat template: of a file of its own, or of the tokenizer's description."""
    if (source := _text(path / "chat_template.jinja", needed=False)) is not None:
        return source
    found = told.get("chat_template")
    if isinstance(found, list):  # several under names
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _token_text(token: Any) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""
