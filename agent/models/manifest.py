"""Which models exist: ``models/manifest.json``, read strictly.

The manifest is data: where a file comes from, its size and SHA-256, its licence, and how to
speak to the model. Unknown keys, duplicates and malformed values are refused by name.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from agent.encoder import EncoderSpec
from agent.errors import ConfigError, ModelNotFound
from agent.models.artifact import FileName, ModelName, Sha256, StoredFile, model_digest
from agent.types import ModelFormat, ThinkingMarks

Profile = Literal["cpu", "npu", "phone"]
"""A class of hardware with its budget."""

Task = Literal["chat", "complete", "classify", "embed", "rerank", "tag"]
"""What a model is for; one that only completes was never taught to follow instructions."""


_RelativePath = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$")]
_Commit = Annotated[str, Meta(pattern=r"^[0-9a-f]{40}$")]
_Repository = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")]


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class ManifestFile(_Strict, frozen=True, kw_only=True):
    """One file of a model; ``bytes`` and ``sha256`` are written only where they were seen."""

    name: FileName
    bytes: Annotated[int, Meta(ge=1)] | None = None
    sha256: Sha256 | None = None


class PackagePart(_Strict, frozen=True, kw_only=True):
    """A file inside a Python distribution; it is read, never imported."""

    distribution: Annotated[str, Meta(min_length=1)]
    version: Annotated[str, Meta(min_length=1)]  # the only one that is accepted
    path: _RelativePath  # inside site-packages


class PackageSource(_Strict, frozen=True, kw_only=True, tag="package", tag_field="kind"):
    """Python distributions that carry the files; a file in several parts is their concatenation."""

    files: dict[FileName, Annotated[tuple[PackagePart, ...], Meta(min_length=1)]]

    @property
    def requirements(self) -> tuple[str, ...]:
        """Every distribution once, as pip takes it, in the order of the manifest."""
        parts = (part for parts in self.files.values() for part in parts)
        return tuple(dict.fromkeys(f"{part.distribution}=={part.version}" for part in parts))


class HubSource(_Strict, frozen=True, kw_only=True, tag="hub", tag_field="kind"):
    """A repository on a Hugging Face hub."""

    repository: _Repository
    pin: Literal["commit", "first-pull"]  # first-pull: the first pull records commit and digests in the lock file
    revision: _Commit | None = None


class UrlSource(_Strict, frozen=True, kw_only=True, tag="url", tag_field="kind"):
    """A plain https URL of the one file."""

    url: Annotated[str, Meta(pattern=r"^https://[^\s]+$")]


class ModelSpec(_Strict, frozen=True, kw_only=True):
    """One model."""

    name: ModelName
    title: str
    format: ModelFormat
    licence: Annotated[str, Meta(min_length=1)]  # SPDX expression, or the licence's own name
    licence_url: str = ""
    accept: bool = False  # whether a person has to accept the licence before a pull
    family: str  # architecture as the formats name it: llama, qwen2, qwen3, gemma3, ...
    parameters: Annotated[int, Meta(ge=1)] | None = None
    tasks: Annotated[tuple[Task, ...], Meta(min_length=1)] = ("chat",)
    context_tokens: Annotated[int, Meta(ge=256)]  # most tokens the model was made for
    files: Annotated[tuple[ManifestFile, ...], Meta(min_length=1)]
    source: PackageSource | HubSource | UrlSource
    memory_mib: dict[Profile, Annotated[int, Meta(ge=1)]] = {}  # to run it on that class of hardware
    recipes: dict[Profile, str] = {}  # what `outrider quantize --target` makes of it
    chat_template: str | None = None  # overrides the template in the file
    system_prompt: str | None = None  # used when a request has none
    thinking: ThinkingMarks | None = None  # of a model that thinks, where its template does not tell
    encoder: EncoderSpec | None = None  # how an encoder is read, where its files do not tell
    remark: str = ""
    demo: bool = False  # shows that things work: labelled so, and served whatever its measured quality

    @property
    def pinned(self) -> bool:
        """Whether every byte is known beforehand."""
        return all(file.sha256 is not None for file in self.files)

    @property
    def promised(self) -> tuple[StoredFile, ...]:
        """The files of which every byte is known beforehand."""
        return tuple(
            StoredFile(name=file.name, bytes=file.bytes, sha256=file.sha256)
            for file in self.files
            if file.bytes is not None and file.sha256 is not None
        )


class _Document(_Strict, frozen=True, kw_only=True):
    schema: Literal[1]
    models: Annotated[tuple[ModelSpec, ...], Meta(min_length=1)]


class Manifest(msgspec.Struct, frozen=True):
    """The models by name, in the order of the file."""

    models: tuple[ModelSpec, ...]

    def find(self, name: str) -> ModelSpec | None:
        return next((spec for spec in self.models if spec.name == name), None)

    def get(self, name: str) -> ModelSpec:
        """Return the model of that exact name; raise ModelNotFound with the nearest names."""
        if found := self.find(name):
            return found
        raise unknown_model(name, [spec.name for spec in self.models])


def unknown_model(name: str, known: list[str]) -> ModelNotFound:
    """Return the error for a name that nothing has, with the nearest that something has."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else f"known are {', '.join(known)}"
    return ModelNotFound(f"there is no model {name[:80]!r}; {hint}", param="model")


def manifest_path() -> Path:
    """Return the manifest that ships with this program: in the package, else in the source tree."""
    here = Path(__file__).resolve()
    packaged = here.with_name("manifest.json")
    return packaged if packaged.exists() else here.parents[2] / "models" / "manifest.json"


def load_manifest(path: Path | None = None) -> Manifest:
    """Read and check a manifest. Raises ConfigError naming the file and the key at fault."""
    path = path or manifest_path()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the model manifest {path} cannot be read: {error}; reinstall Outrider") from error
    try:
        return parse_manifest(text)
    except ValueError as error:
        raise ConfigError(f"the model manifest {path} does not hold: {error}") from error


def parse_manifest(text: str) -> Manifest:
    """Return the manifest in ``text``. Raises ValueError naming the key at fault."""
    document = msgspec.convert(json.loads(text, object_pairs_hook=_without_duplicates), _Document)
    digests = [model_digest(spec.promised) for spec in document.models if spec.pinned]
    for what, values in (("name", [spec.name for spec in document.models]), ("digest", digests)):
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise ValueError(f"the {what} {twice[0]} is used twice")
    for spec in document.models:
        if fault := _fault(spec):
            raise ValueError(f"model {spec.name}: {fault}")
    return Manifest(document.models)


def _fault(spec: ModelSpec) -> str | None:
    """Return what the types alone do not say, or None."""
    if len({file.name for file in spec.files}) < len(spec.files):
        return "a file name is used twice"
    if any((file.sha256 is None) != (file.bytes is None) for file in spec.files):
        return "bytes and sha256 of a file go together"
    source = spec.source
    if isinstance(source, HubSource):
        if source.pin == "first-pull" and (source.revision or any(file.sha256 for file in spec.files)):
            return 'pin = "first-pull" means that nothing is known yet: leave revision, bytes and sha256 out'
        if source.pin == "commit" and not (source.revision and spec.pinned):
            return 'pin = "commit" needs the revision and bytes and sha256 of every file'
        return None
    if not spec.pinned:
        return "files of a package or URL need bytes and sha256"
    if isinstance(source, PackageSource):
        if source.files.keys() != {file.name for file in spec.files}:
            return "the files and those of its packages differ in their names"
        return None
    return "a URL carries one file" if len(spec.files) != 1 else None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is written twice")
    return found
