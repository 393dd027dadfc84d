"""A bundle: one tar file with an index, its signature, and the files that the index names.

::

    outrider-bundle.pub            the key that has signed, as minisign writes it
    outrider-bundle.json           the index: models, and size and SHA-256 of every further member
    outrider-bundle.json.minisig   the signature of the index
    blobs/<sha256>, ...            in the order of the index

Any tar reads it, but only this one very form is accepted: each header must be, byte for byte,
the one that would be written for the expected name and size. So there is no link, device, path,
second member of a name, sparse file, extended header or trailing byte that could do harm, and
nothing is ever unpacked by a name that the file chooses.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Callable
from typing import Annotated, BinaryIO

import msgspec
from msgspec import Meta

from agent.errors import ModelRejected
from agent.models.artifact import Sha256, StoredModel
from agent.models.lock_file import LockedModel
from agent.models.minisign import FIRST_LINE, PublicKey, parse_public, verify

SCHEMA = 1
KEY, INDEX, SIGNATURE, CONFIG = (
    "outrider-bundle.pub",
    "outrider-bundle.json",
    "outrider-bundle.json.minisig",
    "config.toml",
)
BLOBS, WHEELS, CALIBRATIONS = "blobs/", "wheels/", "calibrations/"
MOST_MEMBER_BYTES = 8 * (1 << 30) - 1  # what the size field of such a header holds
_MOST_INDEX_BYTES = 8 << 20
_MOST_SMALL_BYTES = 64 << 10
_BLOCK = 512
_CHUNK = 1 << 20
_END = bytes(2 * _BLOCK)
WHEEL_NAME = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,200}\.(?:whl|tar\.gz)"
_MEMBER = re.compile(r"config\.toml|(?:blobs|wheels|calibrations)/[0-9a-f]{64}")


class Member(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file in a bundle."""

    name: Annotated[str, Meta(max_length=200)]
    bytes: Annotated[int, Meta(ge=0, le=MOST_MEMBER_BYTES)]
    sha256: Sha256
    file: Annotated[str, Meta(pattern=f"^({WHEEL_NAME})?$")] = ""  # of a wheel


class BundledModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model as the device that made the bundle knows it."""

    model: StoredModel
    locked: LockedModel | None = None  # what its first pull has recorded there


class Index(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is in a bundle."""

    schema: int
    made_by: str  # version of the program
    models: Annotated[tuple[BundledModel, ...], Meta(min_length=1, max_length=256)]
    members: Annotated[tuple[Member, ...], Meta(max_length=10_000)]

    @property
    def bytes(self) -> int:
        return sum(member.bytes for member in self.members)


class _Schema(msgspec.Struct):
    schema: int


def header(name: str, size: int) -> bytes:
    """Return the one header that a member may have."""
    entry = tarfile.TarInfo(name)
    entry.size = size
    entry.mode = 0o644
    return entry.tobuf(tarfile.USTAR_FORMAT)


class BundleWriter:
    """Writes members one after the other; the same members give the same bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def small(self, name: str, data: bytes) -> None:
        self._file.write(header(name, len(data)) + data + _padding(len(data)))

    def member(self, member: Member, source: BinaryIO, follow: Callable[[int], None]) -> None:
        """Copy a file. Raises ModelRejected when it is not what ``member`` says, OSError."""
        self._file.write(header(member.name, member.bytes))
        _copy(source, member, self._file.write, follow)
        if source.read(1):
            raise ModelRejected(f"{member.name} grew while it was read; try again")
        self._file.write(_padding(member.bytes))

    def end(self) -> None:
        self._file.write(_END)


class BundleReader:
    """Reads a bundle from front to back. Raises ModelRejected for whatever is not as it must be, OSError."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def index(self, trust: Callable[[PublicKey], None]) -> Index:
        """Return the index once ``trust`` has returned for the key and the signature was found to hold."""
        shown = self._small(KEY, _MOST_SMALL_BYTES)
        key = parse_public(shown.decode("ascii", "replace"))
        raw = self._small(INDEX, _MOST_INDEX_BYTES)
        signature = self._small(SIGNATURE, _MOST_SMALL_BYTES).decode("utf-8", "replace")
        if shown != key.file.encode() or not signature.startswith(FIRST_LINE + "\n"):
            raise ModelRejected("the bundle is damaged or altered: its key or signature is not as it was written")
        verify(key, raw, signature)
        trust(key)
        return _parsed(raw)

    def member(self, member: Member, write: Callable[[bytes], object], follow: Callable[[int], None]) -> None:
        """Copy the next file, which must be ``member``."""
        if self._exactly(_BLOCK) != header(member.name, member.bytes):
            raise ModelRejected(f"the bundle is damaged or altered: {member.name} does not begin where it must")
        _copy(self._file, member, write, follow)
        self._skip_padding(member.bytes)

    def end(self) -> None:
        if self._file.read(len(_END) + 1) != _END:
            raise ModelRejected("the bundle is damaged or altered: it does not end where it must")

    def _small(self, name: str, limit: int) -> bytes:
        head = self._exactly(_BLOCK)
        digits = head[124:135]
        size = int(digits, 8) if re.fullmatch(rb"[0-7]{11}", digits) else -1
        if size < 0 or head != header(name, size):
            raise ModelRejected(f"this is no bundle of Outrider, or a damaged one: {name} is not where it must be")
        if size > limit:
            raise ModelRejected(f"the bundle is refused: {name} claims {size} bytes, at most {limit} are allowed")
        data = self._exactly(size)
        self._skip_padding(size)
        return data

    def _skip_padding(self, size: int) -> None:
        padding = _padding(size)
        if self._exactly(len(padding)) != padding:
            raise ModelRejected("the bundle is damaged or altered: there are bytes between its members")

    def _exactly(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) != count:
            raise ModelRejected("the bundle is cut off")
        return data


def is_bundle(head: bytes) -> bool:
    """Return whether a file that begins so may be a bundle."""
    return head.startswith(KEY.encode() + b"\0")


def _parsed(raw: bytes) -> Index:
    try:
        schema = msgspec.json.decode(raw, type=_Schema).schema
        if schema > SCHEMA:
            raise ModelRejected(f"the bundle has schema {schema}, made by a newer Outrider; this one reads {SCHEMA}")
        index = msgspec.json.decode(raw, type=Index)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ModelRejected(f"the bundle's index does not hold: {error}") from error
    if fault := index_fault(index):
        raise ModelRejected(f"the bundle's index does not hold: {fault}")
    return index


def index_fault(index: Index) -> str | None:
    """Return what the types alone do not say, or None."""
    members = {member.name: member for member in index.members}
    names = [bundled.model.name for bundled in index.models]
    if len(members) < len(index.members) or len(set(names)) < len(names):
        return "a name is used twice"
    for name, one in members.items():
        folder, _, digest = name.partition("/")
        if not _MEMBER.fullmatch(name) or digest not in {"", one.sha256} or (folder == "wheels") != bool(one.file):
            return f"{name[:80]!r} cannot be a member"
    files = [member.file for member in index.members if member.file]
    if len(set(files)) < len(files):
        return "a wheel is there twice"
    used = set()
    for bundled in index.models:
        if len({file.name for file in bundled.model.files}) < len(bundled.model.files):
            return f"a file name of {bundled.model.name} is used twice"
        for file in bundled.model.files:
            member = members.get(BLOBS + file.sha256)
            if member is None or (member.bytes, member.sha256) != (file.bytes, file.sha256):
                return f"{file.name} of {bundled.model.name} is not in it"
            used.add(member.name)
    if unused := {name for name in members if name.startswith(BLOBS)} - used:
        return f"no model has {min(unused)}"
    return None


def _copy(source: BinaryIO, member: Member, write: Callable[[bytes], object], follow: Callable[[int], None]) -> None:
    digest, left = hashlib.sha256(), member.bytes
    while left:
        data = source.read(min(left, _CHUNK))
        if not data:
            raise ModelRejected(f"{member.name} is cut off: {left} bytes are missing")
        digest.update(data)
        write(data)
        left -= len(data)
        follow(len(data))
    if digest.hexdigest() != member.sha256:
        raise ModelRejected(f"{member.name} is damaged or altered: its SHA-256 is {digest.hexdigest()}")


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)
