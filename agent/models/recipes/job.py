"""What goes into the child that makes a model, and what comes out of it: one JSON object a line."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from agent.errors import DiskFull, EngineFailed, InvalidRequest, ModelRejected, OutriderError, StorageError
from agent.types import ModelFormat


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One model to be made of another."""

    recipe: str
    source: str  # a file, or a folder of files
    folder: str  # where results and finished steps lie; nothing else is written
    output: str  # file name, without its ending
    threads: int
    force: bool = False
    task: str = ""  # what an encoder is for
    context_tokens: int | None = None  # the longest context to make it for, where that is less than it could
    environment: str = ""  # data directory of the build environment, where the recipe needs one
    importance: str = "auto"  # "auto", "none", or an importance matrix file


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress", tag_field="kind"):
    """How far a step is."""

    step: str  # for people
    done: int
    total: int


class Made(msgspec.Struct, frozen=True, kw_only=True, tag="made", tag_field="kind"):
    """The end: what lies in the job's folder now."""

    files: tuple[str, ...]
    format: ModelFormat
    versions: dict[str, str]
    inputs: dict[str, str] = {}
    remark: str = ""
    parameters: int | None = None  # where the files do not say it themselves
    context_tokens: int | None = None  # the same


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed", tag_field="kind"):
    """The end: why there is nothing."""

    code: str
    message: str


Event = Progress | Made | Failed
Tell = Callable[[Progress], None]

_FAULTS: tuple[type[OutriderError], ...] = (ModelRejected, InvalidRequest, DiskFull, StorageError)


def failed(error: OutriderError) -> Failed:
    """Return how an error crosses the pipe."""
    return Failed(code=error.code, message=str(error))


def raised(fault: Failed) -> OutriderError:
    """Return the error that the child has met."""
    return next((kind for kind in _FAULTS if kind.code == fault.code), EngineFailed)(fault.message)
