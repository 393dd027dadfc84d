"""A release file: the program's folder in one archive, signed; and whether it is what it says.

``outrider-VERSION-linux-MACHINE.tar.xz`` holds the folder ``outrider``; beside it lies its signature in
the format of minisign. What it holds is checked against its own bill of materials before any of it runs.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from agent.errors import ConfigError, DiskFull, ModelRejected, StorageError
from agent.models.minisign import PublicKey, verify

FOLDER = "outrider"
PROGRAM = "outrider"
BILL = "sbom.cdx.json"
SIGNATURE_SUFFIX = ".minisig"
_UNLISTED = {BILL, "LICENSES.txt"}
_SPARE = 64 << 20  # bytes beside the files themselves
_LARGEST_ARCHIVE = 1 << 30  # bytes; it is read into memory, so that what is unpacked is what was signed
_LARGEST = 4 << 30  # bytes of what is in it


class Release(msgspec.Struct, frozen=True):
    """An archive whose signature holds."""

    archive: Path
    comment: str  # signed as well: name and version, for people
    data: bytes  # of the archive


def checked(archive: Path, keys: tuple[PublicKey, ...]) -> Release:
    """Return the release if one of the keys signed it.

    Raises ConfigError when a file is missing or no key is trusted, ModelRejected when the signature does not hold.
    """
    signature = archive.with_name(archive.name + SIGNATURE_SUFFIX)
    for path in (archive, signature):
        if not path.is_file():
            raise ConfigError(f"{path} is not there: a release is an archive and its signature, side by side")
    if archive.stat().st_size > _LARGEST_ARCHIVE:
        raise ModelRejected(f"{archive} is larger than any release")
    if not keys:
        raise ConfigError("no key for releases is trusted yet: give the one they are published with, by --key RW...")
    data, text = archive.read_bytes(), signature.read_text(encoding="utf-8", errors="replace")
    problem: ModelRejected | None = None
    for key in keys:
        try:
            return Release(archive, verify(key, data, text), data)
        except ModelRejected as error:
            problem = error
    raise ModelRejected(f"{archive.name} is not installed: {problem}")


def unpacked(release: Release, place: Path) -> Path:
    """Lay the release out in ``place``, which must not exist; return the program's folder, checked file by file.

    Raises DiskFull, StorageError, or ModelRejected when it does not hold what its bill of materials says.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(release.data)) as archive:
            _need_room(archive, place.parent)
            place.mkdir(mode=0o755)
            if hasattr(tarfile, "data_filter"):  # from Python 3.11.4 on; what it looks for is looked for here, too
                archive.extraction_filter = tarfile.data_filter
            archive.extractall(place, members=_members(archive))  # noqa: S202 - each member is checked
    except tarfile.TarError as error:
        raise ModelRejected(f"{release.archive.name} cannot be unpacked: {error}") from error
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFull(f"no space left for {place}; free some, then update again; nothing was changed") from error
        raise StorageError(f"{place} cannot be written: {error.strerror}; check its permissions") from error
    folder = place / FOLDER
    against_its_bill(folder)
    return folder


def against_its_bill(folder: Path) -> None:
    """Check every file of a folder against the bill of materials in it. Raises ModelRejected naming the first at fault."""
    try:
        bill = json.loads((folder / BILL).read_text(encoding="utf-8"))
        promised = dict(_promised(bill))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ModelRejected(f"the bill of materials of this release cannot be read: {error}") from error
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}
    if strange := sorted(there - set(promised) - _UNLISTED):
        raise ModelRejected(f"{strange[0]} is in the release, and not in its bill of materials")
    for name, digest in promised.items():
        if name not in there:
            raise ModelRejected(f"{name} is missing in the release")
        with (folder / name).open("rb") as reader:
            if hashlib.file_digest(reader, "sha256").hexdigest() != digest:
                raise ModelRejected(f"{name} in the release is not what its bill of materials says")


def _promised(bill: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for component in (bill["metadata"]["component"], *bill["components"]):
        for file in component.get("components", ()):
            yield file["name"], file["hashes"][0]["content"]


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield what a release may hold: files, folders and links that stay in its folder. Raises ModelRejected."""
    links: set[PurePosixPath] = set()
    for member in archive:
        path = PurePosixPath(member.name)
        if path.parts[:1] != (FOLDER,) or ".." in path.parts or not links.isdisjoint(path.parents):
            raise ModelRejected(f"{member.name} in the release is outside of its folder")
        if member.issym():
            _check_link(path, member.linkname)
            links.add(path)
        elif not (member.isfile() or member.isdir()):
            raise ModelRejected(f"{member.name} in the release is no file, folder or link")
        member.mode &= 0o755
        yield member


def _check_link(path: PurePosixPath, target: str) -> None:
    """Raise ModelRejected unless a link goes up first, not above the folder of the release, and then only down."""
    parts = PurePosixPath(target).parts
    up = next((index for index, part in enumerate(parts) if part != ".."), len(parts))
    if target.startswith("/") or ".." in parts[up:] or up > len(path.parts) - 2:
        raise ModelRejected(f"{path} in the release is a link that leaves its folder: {target}")


def _need_room(archive: tarfile.TarFile, parent: Path) -> None:
    needed = sum(member.size for member in archive.getmembers())
    free = shutil.disk_usage(parent).free
    if needed > _LARGEST:
        raise ModelRejected("the release holds more than any release")
    needed += _SPARE
    if needed > free:
        raise DiskFull(
            f"the update needs {needed >> 20} MiB at {parent}, {free >> 20} MiB are free; nothing was changed"
        )
