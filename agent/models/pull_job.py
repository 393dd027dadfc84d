"""What goes into the child that downloads, and what comes out of it: one JSON object a line."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

import msgspec

from agent.errors import (
    DiskFull,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    ModelRejected,
    OutriderError,
    SourceUnreachable,
    StorageError,
    Unauthorized,
)

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class RemoteFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file as its source describes it."""

    path: str  # in the repository, or the file's name
    bytes: int | None = None  # None: the source does not say
    sha256: str | None = None  # told for large files of a hub only
    git_sha1: str | None = None  # of the other files of a hub: SHA-1 over git's header and the bytes
    url: str = ""  # of a plain URL

    @property
    def name(self) -> str:
        """Its name in the store: a model's files lie in one flat folder."""
        return self.path.rpartition("/")[2]


class Listing(msgspec.Struct, frozen=True, kw_only=True, tag="listing", tag_field="kind"):
    """What a source offers right now."""

    revision: str  # commit; of a URL what the server calls its version (ETag), or empty
    files: tuple[RemoteFile, ...]
    licence: str = ""
    parameters: int | None = None
    gated: bool = False


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One look at a source, or one download of what was seen there."""

    action: Literal["look", "fetch"]
    repository: str = ""  # of a hub; else ``url`` is set
    url: str = ""
    revision: str = ""  # branch, tag or commit; empty: the newest
    endpoint: str = "https://huggingface.co"
    token: str | None = None
    folder: str = ""  # where files go; nothing else is written
    files: tuple[RemoteFile, ...] = ()  # to fetch

    def __repr__(self) -> str:
        return f"Job({self.action}, {self.repository or self.url})"  # never the token


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress", tag_field="kind"):
    """How many bytes of all files are here."""

    done: int
    total: int


class Fetched(msgspec.Struct, frozen=True, kw_only=True, tag="fetched", tag_field="kind"):
    """The end: every file lies in the folder under its name, in the promised size."""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed", tag_field="kind"):
    """The end: why there is nothing. What has arrived so far stays for the next time."""

    code: str
    message: str


Event = Listing | Progress | Fetched | Failed

_FAULTS: tuple[type[OutriderError], ...] = (
    ModelNotFound,
    ModelRejected,
    InvalidRequest,
    Unauthorized,
    SourceUnreachable,
    DiskFull,
    StorageError,
)


def failed(error: OutriderError) -> Failed:
    """Return how an error crosses the pipe."""
    return Failed(code=error.code, message=str(error))


def raised(fault: Failed) -> OutriderError:
    """Return the error that the child has met."""
    return next((kind for kind in _FAULTS if kind.code == fault.code), EngineFailed)(fault.message)


def require_tls(url: str) -> None:
    """Refuse a URL that is not https; http is for loopback alone. Raises InvalidRequest."""
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        return
    raise InvalidRequest(f"{parts.scheme}://{parts.hostname} is refused: models come over https, or http on loopback")
