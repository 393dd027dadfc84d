"""From a Hugging Face checkpoint to a GGUF model of the store, without loss; then on to what is wished."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path

import msgspec

from agent import __version__
from agent.errors import InvalidRequest
from agent.models.artifact import Making, StoredModel
from agent.models.blobs import described
from agent.models.build_env import BuildEnvironment
from agent.models.checkpoint import Checkpoint, look
from agent.models.encoder_making import find_encoder, quantize_encoder
from agent.models.gguf_check import check_gguf
from agent.models.quantizing import (
    DEFAULT_RECIPES,
    Follow,
    Outcome,
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


def quantize_any(store: ModelStore, data_path: Path, wish: Wish, follow: Follow) -> Outcome:
    """Make a model of a GGUF model, an ONNX encoder or a checkpoint: a folder, or a model of the store.

    Raises what ``quantize`` raises, and WrongState when the build environment is not there.
    """
    if (encoder := find_encoder(store, wish.source)) is not None:
        return quantize_encoder(store, encoder, wish, follow)
    folder, parent = _checkpoint_of(store, wish.source)
    if folder is None:
        return quantize(store, wish, follow)
    wish = with_recipe(wish, DEFAULT_RECIPES, tuple(TARGETS), folder.name)
    outcome = _convert(store, data_path, folder, parent, wish, follow)
    if wish.recipe == f"gguf-{outcome.model.name.rpartition('-')[2]}":
        return outcome
    return quantize(store, msgspec.structs.replace(wish, source=outcome.model.name), follow)


def _checkpoint_of(store: ModelStore, given: str) -> tuple[Path | None, StoredModel | None]:
    path = Path(given).expanduser()
    if path.is_dir() and (os.sep in given or (path / "config.json").is_file()):
        return path.resolve(), None
    model = None if os.sep in given or path.suffix.lower() == ".gguf" else store.get(given)
    if model is None or model.format is not ModelFormat.CHECKPOINT:
        return None, None
    return Path(store.resolve(given).path), model


def _convert(
    store: ModelStore, data_path: Path, folder: Path, parent: StoredModel | None, wish: Wish, follow: Follow
) -> Outcome:
    found = look(folder)
    if (fault := size_fault(folder.name, found.parameters)) and not wish.force:
        raise InvalidRequest(f"{fault}. Use --force to convert it all the same", param="model")
    stem = parent.name if parent else slug(folder.name)
    name = f"{stem[:_LONGEST_STEM]}-{found.kind}"
    making = Making(recipe="checkpoint", parent=stem, parent_digest=_digest(found), versions={"outrider": __version__})
    if (there := already_made(store, name, making, force=wish.force)) is not None:
        return Outcome(model=there, source_bytes=found.bytes, was_there=True)
    BuildEnvironment(data_path).require()
    with making_folder(store, making) as work:
        require_room(store, found.bytes + _METADATA, f"making {name}")
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
            context_tokens=(parent.context_tokens if parent else None) or header.context_tokens or 2048,
            parameters=header.parameters,
            remark=f"converted without loss from the checkpoint {stem}",
            making=msgspec.structs.replace(making, versions=making.versions | made.versions),
            added_at_ms=int(time.time() * 1000),
        )
        kept = store.add(model, {file.name: work / file.name for file in model.files}, move=True)
        shutil.rmtree(work, ignore_errors=True)
    return Outcome(model=kept, source_bytes=found.bytes, was_there=False)


def _digest(found: Checkpoint) -> str:
    """Return the digest of the files that the conversion reads, as a model of the store has it."""
    lines = "".join(f"{described(path, 'x').sha256}  {path.name}\n" for path in found.files)
    return hashlib.sha256(lines.encode()).hexdigest()
