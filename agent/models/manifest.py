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

from agent.errors import ConfigError, ModelNotFound

_ModelName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
_FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
_Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
_RelativePath = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$")]


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class ModelWeights(_Strict, frozen=True):
    """The one file that holds the weights."""

    name: _FileName
    bytes: Annotated[int, Meta(ge=1)]
    sha256: _Sha256


class PackageSource(_Strict, frozen=True):
    """A Python distribution that carries the file; it is read, never imported."""

    distribution: Annotated[str, Meta(min_length=1)]
    version: Annotated[str, Meta(min_length=1)]  # the only one that is accepted
    path: _RelativePath  # inside site-packages


class ModelSpec(_Strict, frozen=True):
    """One model."""

    name: _ModelName
    title: str
    licence: Annotated[str, Meta(min_length=1)]  # SPDX expression
    context_tokens: Annotated[int, Meta(ge=256)]  # most tokens the model was made for
    file: ModelWeights
    source: PackageSource
    chat_template: str | None = None  # overrides the template in the file
    system_prompt: str | None = None  # used when a request has none
    remark: str = ""


class _Document(_Strict, frozen=True):
    schema: Literal[1]
    models: Annotated[tuple[ModelSpec, ...], Meta(min_length=1)]


class Manifest(msgspec.Struct, frozen=True):
    """The models by name, in the order of the file."""

    models: tuple[ModelSpec, ...]

    def get(self, name: str) -> ModelSpec:
        """Return the model of that exact name; raise ModelNotFound with the nearest names."""
        for spec in self.models:
            if spec.name == name:
                return spec
        known = [spec.name for spec in self.models]
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(close)}?" if close else f"known are {', '.join(known)}"
        raise ModelNotFound(f"there is no model {name[:80]!r}; {hint}", param="model")


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
    for what, values in (
        ("name", [spec.name for spec in document.models]),
        ("sha256", [spec.file.sha256 for spec in document.models]),
    ):
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise ValueError(f"the {what} {twice[0]} is used by two models")
    return Manifest(document.models)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is written twice")
    return found
