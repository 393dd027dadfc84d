"""A store with two small models of two formats, and bundles made of it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import msgspec
from fakes.gguf import gguf
from fakes.peft import safetensors

from agent.models.artifact import StoredModel
from agent.models.blobs import described
from agent.models.bundle_file import BundleWriter, Index
from agent.models.bundling import Parcel, export_bundle
from agent.models.manifest import Manifest
from agent.models.minisign import SecretKey
from agent.models.store import ModelStore
from agent.types import ModelFormat

KEY = SecretKey(b"8 bytes!", b"s" * 32)
OTHER = SecretKey(b"8 other!", b"t" * 32)


def store_at(data: Path, *specs) -> ModelStore:
    return ModelStore(data / "models", Manifest(specs))


def quietly(_) -> None:
    pass


def add(store: ModelStore, name: str, kind: ModelFormat, **files: bytes) -> StoredModel:
    """Keep a model of these files; ``_`` in a name stands for a dot."""
    place = store.data_path.parent / f"outside-{name}"
    place.mkdir(parents=True, exist_ok=True)
    paths = {file.replace("_", "."): place / file for file in files}
    for path, data in zip(paths.values(), files.values(), strict=True):
        path.write_bytes(data)
    model = StoredModel(
        name=name,
        title=name.title(),
        format=kind,
        files=tuple(described(path, file) for file, path in paths.items()),
        licence="MIT",
        source="hub owner/" + name,
        revision="a" * 40,
        context_tokens=256,
        added_at_ms=1,
    )
    return store.add(model, paths)


def two_models(data: Path) -> ModelStore:
    import numpy as np

    store = store_at(data)
    weights = safetensors({"w": np.zeros((2, 2), np.float32)})
    add(store, "one", ModelFormat.GGUF, one_gguf=gguf())
    add(store, "two", ModelFormat.CHECKPOINT, config_json=b"{}", model_safetensors=weights)
    return store


def exported(store: ModelStore, path: Path, *names: str, key: SecretKey = KEY) -> bytes:
    export_bundle(store, names or ("one", "two"), path, key, Parcel(), quietly)
    return path.read_bytes()


def forged(index: dict, members: dict[str, bytes], *, key: SecretKey = KEY) -> bytes:
    """Return a bundle that says whatever it shall say, properly signed."""
    raw = msgspec.json.encode(index)
    out = io.BytesIO()
    writer = BundleWriter(out)
    writer.small("outrider-bundle.pub", key.public.file.encode())
    writer.small("outrider-bundle.json", raw)
    writer.small("outrider-bundle.json.minisig", key.sign(raw, "forged").encode())
    for name, data in members.items():
        writer.small(name, data)
    writer.end()
    return out.getvalue()


def opened(data: bytes) -> tuple[dict, dict[str, bytes]]:
    """Return the index and the members of a bundle, by the standard library's own reader."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = {entry.name: tar.extractfile(entry).read() for entry in tar}
    index = msgspec.json.decode(found["outrider-bundle.json"])
    msgspec.convert(index, Index)
    return index, {name: content for name, content in found.items() if not name.startswith("outrider-bundle")}
