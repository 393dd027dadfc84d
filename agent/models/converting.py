"""From a Hugging Face checkpoint to a GGUF model of the store, without loss; then on to what is wished."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import msgspec

from agent import __version__
from agent.errors import InvalidRequest, ModelRejected
from agent.models.artifact import Making, StoredModel
from agent.models.blobs import described
from agent.models.build_env import BuildEnvironment
from agent.models.checkpoint import Checkpoint, look
from agent.models.gguf_check import check_gguf
from agent.models.onnx_making import (
    BY_OPTIMUM,
    ENCODER_DEFAULTS,
    ENCODER_RECIPES,
    EXPORT_RECIPES,
    GENERATION_RECIPES,
    FolderSource,
    digest_of,
    find_encoder,
    make_onnx,
    quantize_encoder,
    source_of,
    stored_or_packaged,
)
from agent.models.quantizing import (
    DEFAULT_RECIPES,
    Follow,
    Outcome,
    Target,
    Wish,
    already_made,
    making_folder,
    quantize,
    run,
    slug,
    with_recipe,
)
from agent.models.recipes.job import Job
from agent.models.recipes.tensor_types import TARGETS
from agent.models.room import require_room
from agent.models.size_limit import size_fault
from agent.models.store import ModelStore
from agent.types import ModelFormat

_METADATA = 64 << 20  # bytes, at most, of tokens and merges in a GGUF file
_LONGEST_STEM = 58
_EXPORT_DEFAULTS: dict[Target, str] = {"cpu": "onnx-int8", "phone": "onnx-int4"}


def quantize_any(store: ModelStore, data_path: Path, wish: Wish, follow: Follow) -> Outcome:
    """Make a model of a GGUF model, an ONNX encoder or a checkpoint: a folder, or a model of the store.

    Raises what ``quantize`` raises, and WrongState when the build environment is not there.
    """
    if (graph := find_encoder(store, wish.source)) is not None:
        return quantize_encoder(store, data_path, graph, wish, follow)
    folder, parent = _checkpoint_of(store, wish.source)
    if folder is None:
        return quantize(store, wish, follow)
    found = look(folder)
    name = parent.name if parent else slug(folder.name)
    if (fault := size_fault(name, found.parameters)) and not wish.force:
        raise InvalidRequest(f"{fault}. Use --force to convert it all the same", param="model")
    if found.encoder:
        wish = with_recipe(wish, ENCODER_DEFAULTS, (*EXPORT_RECIPES, *ENCODER_RECIPES), f"the encoder {name}")
        return _encoder(store, data_path, source_of(name, folder, parent, found.files, found.encoder), wish, follow)
    if found.only_exported:
        wish = _exported(with_recipe(wish, _EXPORT_DEFAULTS, tuple(GENERATION_RECIPES), f"a {found.architecture}"))
    wish = with_recipe(wish, DEFAULT_RECIPES, (*TARGETS, *GENERATION_RECIPES), name)
    if wish.recipe in GENERATION_RECIPES:
        recipe = GENERATION_RECIPES[wish.recipe]
        return make_onnx(store, data_path, source_of(name, folder, parent, found.files), recipe, wish, follow)
    if found.fault:
        raise ModelRejected(f"{name} is not converted to GGUF: {found.fault}")
    outcome = _convert(store, data_path, folder, parent, wish, follow, found)
    if wish.recipe == f"gguf-{outcome.model.name.rpartition('-')[2]}":
        return outcome
    return quantize(store, msgspec.structs.replace(wish, source=outcome.model.name), follow)


def _exported(wish: Wish) -> Wish:
    """Return the wish by the way of optimum: the builder does not take the model."""
    recipe = wish.recipe if wish.recipe.endswith(BY_OPTIMUM) else wish.recipe + BY_OPTIMUM
    return msgspec.structs.replace(wish, recipe=recipe)


def _encoder(store: ModelStore, data_path: Path, source: FolderSource, wish: Wish, follow: Follow) -> Outcome:
    """Export the checkpoint of an encoder and keep that; then make of it what is wished."""
    only = wish.recipe in EXPORT_RECIPES
    export = msgspec.structs.replace(wish, recipe="onnx-f32", target="cpu", name=wish.name if only else None)
    exported = make_onnx(store, data_path, source, EXPORT_RECIPES["onnx-f32"], export, follow)
    graph = None if only else find_encoder(store, exported.model.name)
    return exported if graph is None else quantize_encoder(store, data_path, graph, wish, follow)


def _checkpoint_of(store: ModelStore, given: str) -> tuple[Path | None, StoredModel | None]:
    path = Path(given).expanduser()
    if path.is_dir() and (os.sep in given or (path / "config.json").is_file()):
        return path.resolve(), None
    model = stored_or_packaged(store, given)
    if model is None or model.format is not ModelFormat.CHECKPOINT:
        return None, None
    return Path(store.resolve(given).path), model


def _convert(
    store: ModelStore,
    data_path: Path,
    folder: Path,
    parent: StoredModel | None,
    wish: Wish,
    follow: Follow,
    found: Checkpoint,
) -> Outcome:
    stem = parent.name if parent else slug(folder.name)
    name = f"{stem[:_LONGEST_STEM]}-{found.kind}"
    making = Making(
        recipe="checkpoint", parent=stem, parent_digest=digest_of(found.files), versions={"outrider": __version__}
    )
    if (there := already_made(store, name, making, force=wish.force)) is not None:
        return Outcome(model=there, source_bytes=found.bytes, was_there=True)
    BuildEnvironment(data_path).require()
    with making_folder(store, making) as work:
        require_room(store, found.bytes + _METADATA, f"making {name}", work)
        job = Job(
            recipe="checkpoint",
            source=str(folder),
            folder=str(work),
            output=name,
            threads=wish.threads,
            environment=str(data_path),
        )
        made = run(job, follow)
        header = check_gguf(work / made.files[0])
        model = StoredModel(
            name=name,
            title=f"{parent.title if parent else header.scalars.get('general.name', stem)}, {found.kind.upper()}",
            format=made.format,
            files=tuple(described(work / file, file) for file in made.files),
            licence=wish.licence
            or (parent.licence if parent else str(header.scalars.get("general.license", "unknown"))),
            source=f"made here from {stem}",
            context_tokens=min(
                (parent.context_tokens if parent else None) or header.context_tokens or 2048,
                found.context_tokens or header.context_tokens or 2048,
            ),
            parameters=header.parameters,
            remark=f"converted without loss from the checkpoint {stem}",
            making=msgspec.structs.replace(making, versions=making.versions | made.versions),
            added_at_ms=int(time.time() * 1000),
        )
        kept = store.add(model, {file.name: work / file.name for file in model.files}, move=True)
        shutil.rmtree(work, ignore_errors=True)
    return Outcome(model=kept, source_bytes=found.bytes, was_there=False)
