"""Make a smaller encoder of an ONNX encoder: in a child, compared with its source, taken into the store whole."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from pathlib import Path

import msgspec

from agent import __version__
from agent.models.artifact import Making, StoredModel, checked_name
from agent.models.blobs import described
from agent.models.encoder_folder import files_in, read_spec
from agent.models.quantizing import (
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
from agent.models.recipes.job import Job
from agent.models.room import require_room
from agent.models.store import ModelStore
from agent.types import ModelFormat

_NEW_FILES = 2  # the rounded graph and the quantizer's own copy take at most so many times the source
_DEFAULT_CONTEXT = 512  # tokens, where no file says how many the model reads


class EncoderRecipe(msgspec.Struct, frozen=True):
    """A way to make one encoder of another."""

    title: str  # what it adds to the title of a model
    ending: str  # of the new name


ENCODER_RECIPES = {"onnx-int8": EncoderRecipe("int8", "-int8")}
DEFAULT_RECIPES: dict[Target, str] = {"cpu": "onnx-int8", "phone": "onnx-int8"}


class EncoderSource(msgspec.Struct, frozen=True, kw_only=True):
    """The files of an ONNX encoder."""

    name: str
    folder: Path
    model: StoredModel | None  # None: a folder outside of the store


def find_encoder(store: ModelStore, given: str) -> EncoderSource | None:
    """Return the ONNX encoder of a name or folder, verified; None when it is something else. Raises ModelRejected."""
    path = Path(given).expanduser()
    if path.is_dir() and (os.sep in given or (path / "config.json").is_file()):
        return EncoderSource(name=slug(path.name), folder=path.resolve(), model=None) if _holds_graph(path) else None
    model = None if os.sep in given or path.suffix.lower() == ".gguf" else store.get(given)
    if model is None or model.format is not ModelFormat.ONNX_ENCODER:
        return None
    return EncoderSource(name=given, folder=Path(store.resolve(given).path), model=model)


def _holds_graph(folder: Path) -> bool:
    # The genai builder's folders hold a model.onnx too, which is no encoder.
    return (folder / "model.onnx").is_file() and not (folder / "genai_config.json").exists()


def quantize_encoder(store: ModelStore, source: EncoderSource, wish: Wish, follow: Follow) -> Outcome:
    """Make a model and return it. Raises what ``quantize`` raises."""
    wish = with_recipe(wish, DEFAULT_RECIPES, tuple(ENCODER_RECIPES), f"the ONNX encoder {source.name}")
    recipe = ENCODER_RECIPES[wish.recipe]
    name = checked_name(wish.name) if wish.name else _new_name(source.name, recipe)
    making = Making(
        recipe=wish.recipe if wish.target == "cpu" else f"{wish.recipe} for {wish.target}",
        parent=source.name,
        parent_digest=source.model.digest if source.model else _digest(source.folder),
        versions={"outrider": __version__},
    )
    size = sum(path.stat().st_size for path in source.folder.iterdir() if path.is_file())
    if (there := already_made(store, name, making, force=wish.force)) is not None:
        return Outcome(model=there, source_bytes=size, was_there=True)
    with making_folder(store, making) as folder:
        require_room(store, size * _NEW_FILES, f"making {name}")
        job = Job(
            recipe=wish.recipe,
            source=str(source.folder),
            folder=str(folder),
            output=name,
            threads=wish.threads,
            force=wish.force,
        )
        made = run(job, follow)
        parent = source.model
        spec = (parent.encoder if parent else None) or read_spec(files_in(source.folder))
        title = parent.title if parent else source.name
        remark = f"made for {wish.target} from {source.name}"
        model = StoredModel(
            name=name,
            title=f"{re.sub(r', (?:FP32|F32)$', '', title)}, {recipe.title}",
            format=made.format,
            files=tuple(described(folder / file, file) for file in made.files),
            licence=wish.licence or (parent.licence if parent else "unknown"),
            source=f"made here from {source.name}",
            context_tokens=(parent.context_tokens if parent else made.context_tokens) or _DEFAULT_CONTEXT,
            parameters=made.parameters,
            tasks=parent.tasks if parent else (spec.task,),
            encoder=spec,
            remark=f"{remark}; {made.remark}" if made.remark else remark,
            making=msgspec.structs.replace(
                making, versions=making.versions | made.versions, inputs=making.inputs | made.inputs
            ),
            added_at_ms=int(time.time() * 1000),
        )
        kept = store.add(model, {file: folder / file for file in made.files}, move=True)
        shutil.rmtree(folder, ignore_errors=True)
    return Outcome(model=kept, source_bytes=size, was_there=False)


def _digest(folder: Path) -> str:
    """Return the digest of the files in a folder, as a model of the store has it."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return hashlib.sha256(
        "".join(f"{described(path, 'x').sha256}  {path.name}\n" for path in files).encode()
    ).hexdigest()


def _new_name(source: str, recipe: EncoderRecipe) -> str:
    stem = re.sub(r"[-_.](?:fp?32|onnx)$", "", source)
    return stem[: 64 - len(recipe.ending)] + recipe.ending
