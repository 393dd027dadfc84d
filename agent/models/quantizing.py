"""Make a model of another one: checked first, worked out in a child, taken into the store whole or not at all.

Finished steps lie in ``models/making/<key>``, where the key is what decides the outcome, so an
interrupted call goes on where it was. A lock keeps a second call away from the same folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from agent import __version__, executable
from agent.errors import EngineFailed, InvalidRequest, ModelNotFound, ModelRejected, StorageError, WrongState
from agent.models.artifact import Making, StoredFile, StoredModel, checked_name
from agent.models.blobs import described
from agent.models.gguf_check import GgufHeader, check_gguf
from agent.models.interrupted import sweep, working_folder
from agent.models.profiles import PROFILES
from agent.models.recipes.job import Event, Failed, Job, Made, Progress, raised
from agent.models.recipes.tensor_types import GOOD_SOURCES, TARGETS, GgufTarget, expected_bytes, precision
from agent.models.room import require_room
from agent.models.size_limit import size_fault
from agent.models.store import ModelStore
from agent.types import ModelFormat

PHONE_CONTEXT = PROFILES["phone"].context_tokens
PHONE_MEMORY = (PROFILES["phone"].memory_mib or 0) << 20  # bytes, for weights and cache
# What a phone is served with.
PHONE_INPUTS = {"context_tokens": str(PHONE_CONTEXT), "threads": str(PROFILES["phone"].threads)}
_ROUNDED = "its weights were rounded before, to"
_TYPE_IN_TITLE = re.compile(r", (?:F16|F32|BF16|I?Q\d\w*)$")
_NOTES = 20  # last lines of the child's stderr that are kept

Target = Literal["cpu", "npu", "phone"]
DEFAULT_RECIPES: dict[Target, str] = {name: one.recipe for name, one in PROFILES.items() if one.recipe}
NO_DECODER_FOR_NPU = (
    "a model that writes text is not made for an NPU here. That takes graphs of a fixed length, one for the prompt and "
    "one for each token, 16-bit activations, and a context compiled by the maker's own tools for the very chip: make it "
    "with those, or use --target cpu. Encoders (embeddings, classification) are made for an NPU"
)
Follow = Callable[[Progress], None]


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What shall be made."""

    source: str  # a name in the store or the manifest, or the path of a file
    recipe: str = ""  # "": the target's own, for such a source
    name: str | None = None  # of the new model
    target: Target = "cpu"
    force: bool = False
    importance: str = "auto"  # "auto", "none", or an importance matrix file
    threads: int = 1
    licence: str | None = None  # where the source does not say


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is made of."""

    name: str
    path: Path
    digest: str
    header: GgufHeader
    model: StoredModel | None  # None: a file outside of the store


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What there is now."""

    model: StoredModel
    source_bytes: int
    was_there: bool  # nothing had to be made
    warnings: tuple[str, ...] = ()


def quantize(store: ModelStore, wish: Wish, follow: Follow) -> Outcome:
    """Make a model and return it. Blocking, minutes for large ones; ends early on KeyboardInterrupt.

    Raises InvalidRequest for a wish that makes no sense, ModelNotFound, ModelRejected, DiskFull,
    StorageError, WrongState when another call makes the same, EngineFailed when the child breaks.
    """
    source = find_source(store, wish.source)
    wish = with_recipe(wish, DEFAULT_RECIPES, tuple(TARGETS), source.name)
    if wish.name:
        checked_name(wish.name)
    target = TARGETS[wish.recipe]
    warnings = _judge(source, target, wish)
    name = wish.name or _new_name(source.name, target, wish.target)
    making = Making(
        recipe=wish.recipe if wish.target == "cpu" else f"{wish.recipe} for {wish.target}",
        parent=source.name,
        parent_digest=source.digest,
        versions={"outrider": __version__},
        inputs=_inputs(wish, target),
    )
    if (there := already_made(store, name, making, force=wish.force)) is not None:
        return Outcome(model=there, source_bytes=source.path.stat().st_size, was_there=True, warnings=warnings)
    with making_folder(store, making) as folder:
        expected = expected_bytes(source.header, target, source.path.stat().st_size)
        require_room(store, expected, f"making {name}", folder)
        job = Job(
            recipe=wish.recipe,
            source=str(source.path),
            folder=str(folder),
            output=name,
            threads=wish.threads,
            force=wish.force,
            importance=wish.importance,
        )
        made = run(job, follow)
        files = tuple(described(folder / file, file) for file in made.files)
        model = _record(source, wish, name, files, made, making)
        kept = store.add(model, {file.name: folder / file.name for file in files}, move=True)
        shutil.rmtree(folder, ignore_errors=True)
    return Outcome(model=kept, source_bytes=source.path.stat().st_size, was_there=False, warnings=warnings)


def with_recipe(wish: Wish, defaults: Mapping[Target, str], known: Sequence[str], name: str) -> Wish:
    """Return the wish with a recipe for its kind of source. Raises InvalidRequest where there is none."""
    if not wish.recipe and wish.target not in defaults:
        raise InvalidRequest(f"{name}: {NO_DECODER_FOR_NPU}", param="target")
    recipe = wish.recipe or defaults[wish.target]
    if recipe not in known:
        raise InvalidRequest(f"there is no recipe {recipe!r} for {name}; there are {', '.join(known)}", param="recipe")
    return msgspec.structs.replace(wish, recipe=recipe)


def find_source(store: ModelStore, given: str) -> Source:
    """Return the model of a name or path, verified. Raises ModelNotFound, ModelRejected."""
    path = Path(given).expanduser()
    if path.suffix.lower() == ".gguf" or os.sep in given:
        if not path.is_file():
            raise ModelNotFound(f"there is no file {path}", param="model")
        header = check_gguf(path)
        return Source(
            name=slug(path.stem), path=path.resolve(), digest=described(path, "x").sha256, header=header, model=None
        )
    file = store.resolve(given, below_floor=True)  # it is read here, not served
    if file.format is not ModelFormat.GGUF:
        raise InvalidRequest(f"model {given} is {file.format}; a recipe for GGUF needs a GGUF model", param="model")
    return Source(
        name=given, path=Path(file.path), digest=file.sha256, header=check_gguf(Path(file.path)), model=store.get(given)
    )


def run(job: Job, follow: Follow) -> Made:
    """Do a job in a child and return what it made. Raises what the child met, or EngineFailed."""
    with (
        tempfile.TemporaryFile() as notes,
        subprocess.Popen(
            executable.command("quantize-worker"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=notes
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        made: Made | None = None
        try:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(msgspec.json.encode(job) + b"\n")
                child.stdin.flush()
            for line in child.stdout:
                event: Event = msgspec.json.decode(line, type=Event)
                if isinstance(event, Progress):
                    follow(event)
                elif isinstance(event, Failed):
                    raise raised(event)
                else:
                    made = event
        finally:
            if made is None:
                child.kill()
        status = child.wait()
        if made is None or status:
            notes.seek(0)
            last = notes.read().decode("utf-8", "replace").splitlines()[-_NOTES:]
            end = f"signal {-status}" if status < 0 else f"status {status}"
            raise EngineFailed(f"the process that makes {job.output} ended with {end}: {' | '.join(last)[-800:]}")
        return made


def _judge(source: Source, target: GgufTarget, wish: Wish) -> tuple[str, ...]:
    """Refuse what makes no sense or does harm; with ``force``, return it as warnings."""
    has = precision(source.header)
    faults = []
    if fault := size_fault(source.name, source.header.parameters):
        faults.append(fault)
    if has.name == target.name or (has.name not in GOOD_SOURCES and has.bits <= target.bits):
        faults.append(
            f"{source.name} is {has.name} ({has.bits:.2f} bits a weight): as {target.name} it gains nothing, "
            "what was rounded away does not come back"
        )
    elif has.name not in GOOD_SOURCES:
        faults.append(
            f"{source.name} is {has.name} ({has.bits:.2f} bits a weight), which is rounded already: "
            f"{target.name} made of it is rounded twice and worse than one made of F16, BF16 or Q8_0"
        )
    if wish.target == "phone":
        needed = expected_bytes(source.header, target, source.path.stat().st_size) + cache_bytes(
            source.header, PHONE_CONTEXT
        )
        if needed > PHONE_MEMORY:
            faults.append(
                f"{source.name} as {target.name} needs about {needed >> 20} MiB with {PHONE_CONTEXT} tokens of context; "
                f"the ceiling for a phone is {PHONE_MEMORY >> 20} MiB"
            )
    if faults and not wish.force:
        raise InvalidRequest(f"{'; '.join(faults)}. Use --force to make it all the same", param="model")
    return tuple(faults)


def cache_bytes(header: GgufHeader, tokens: int) -> int:
    """Return what the keys and values of so many tokens take as F16; 0 where the header does not say."""

    def figure(key: str) -> int:
        value = header.scalars.get(f"{header.architecture}.{key}", 0)
        return value if isinstance(value, int) else 0

    heads = figure("attention.head_count")
    if not heads:
        return 0
    width = figure("attention.key_length") or figure("embedding_length") // heads
    return tokens * figure("block_count") * (figure("attention.head_count_kv") or heads) * width * 2 * 2


def _inputs(wish: Wish, target: GgufTarget) -> dict[str, str]:
    device = PHONE_INPUTS if wish.target == "phone" else {}
    if not target.importance:
        return device
    if wish.importance in {"auto", "none"}:
        return device | {"importance": wish.importance}
    try:
        return device | {"importance": described(Path(wish.importance), "x").sha256}
    except OSError as error:
        raise InvalidRequest(f"{wish.importance} cannot be read: {error.strerror}", param="importance") from error


def already_made(store: ModelStore, name: str, making: Making, *, force: bool) -> StoredModel | None:
    """Return the model of that name when it was made just so. Raises WrongState when it is another one."""
    there = store.get(name)
    if there is None:
        if store.manifest.find(name):
            raise WrongState(f"{name} is a model of the manifest; give the new one another name with --name")
        return None
    if there.making is not None:
        same = (there.making.recipe, there.making.parent_digest) == (making.recipe, making.parent_digest)
        if same and making.inputs.items() <= there.making.inputs.items():
            store.verify(name)
            return there
    if not force:
        raise WrongState(f"there is another model {name} in the store; use --name, or --force to replace it")
    return None


@contextmanager
def making_folder(store: ModelStore, making: Making) -> Iterator[Path]:
    """Hold the folder for this outcome alone. Raises WrongState, StorageError."""
    text = msgspec.json.encode([making.recipe, making.parent_digest, sorted(making.inputs.items())])
    place = store.blobs.root / "making"
    key = hashlib.sha256(text).hexdigest()[:24]
    with contextlib.ExitStack() as holding:
        try:
            store.blobs.prepare()
            sweep(place)
            busy = "the same model is being made by another call; wait for it"
            folder = holding.enter_context(working_folder(place, key, busy))
        except OSError as error:
            raise StorageError(f"{place} cannot be written to: {error.strerror}; check its permissions") from error
        yield folder


def _record(
    source: Source, wish: Wish, name: str, files: tuple[StoredFile, ...], made: Made, making: Making
) -> StoredModel:
    parent, header = source.model, source.header
    context = parent.context_tokens if parent else header.context_tokens or PHONE_CONTEXT
    licence = wish.licence or (parent.licence if parent else str(header.scalars.get("general.license", "unknown")))
    title = parent.title if parent else str(header.scalars.get("general.name", source.name))
    remark = f"made for {wish.target} from {source.name}"
    if rounded := _rounded_before(source):
        remark += f"; {rounded}"
    if wish.target == "phone":
        context = min(context, PHONE_CONTEXT)
        remark += "; set engine.threads = 4 on the phone"
    model = StoredModel(
        name=name,
        title=f"{_TYPE_IN_TITLE.sub('', title)}, {TARGETS[wish.recipe].name}",
        format=made.format,
        files=files,
        licence=licence,
        source=f"made here from {source.name}",
        context_tokens=context,
        parameters=header.parameters,
        remark=remark if not made.remark else f"{remark}; {made.remark}",
        making=msgspec.structs.replace(
            making, versions=making.versions | made.versions, inputs=_merged(making.inputs, made.inputs)
        ),
        added_at_ms=int(time.time() * 1000),
    )
    if parent is None:
        return model
    return msgspec.structs.replace(
        model,
        tasks=parent.tasks,
        chat_template=parent.chat_template,
        system_prompt=parent.system_prompt,
        thinking=parent.thinking,
    )


def _rounded_before(source: Source) -> str:
    """Return what is known of earlier losses, which the file itself does not show."""
    has = precision(source.header)
    if has.name not in GOOD_SOURCES:
        return f"{_ROUNDED} {has.name}"
    remark = source.model.remark if source.model else ""
    return next((part for part in remark.split("; ") if part.startswith(_ROUNDED)), "")


def _merged(asked: dict[str, str], used: dict[str, str]) -> dict[str, str]:
    """Keep what was asked for, so that the same wish is known again, beside what went in."""
    return asked | {f"{key}_sha256": value for key, value in used.items()}


def _new_name(source: str, target: GgufTarget, device: Target) -> str:
    stem = re.sub(r"[-_.](?:f16|f32|bf16|q\d\w*|iq\d\w*)$", "", source)
    ending = f"-{target.name.lower()}" + ("-phone" if device == "phone" else "")
    return stem[: 64 - len(ending)] + ending


def slug(text: str) -> str:
    """Return a text as a name of the store. Raises ModelRejected when nothing is left of it."""
    slug = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:64]
    if not slug:
        raise ModelRejected(f"no name can be made of {text!r}; rename the file")
    return slug
