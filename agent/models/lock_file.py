"""What every pull got: ``<data dir>/models.lock.json``. The next pull of a name must get the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from agent.errors import StorageError
from agent.models.artifact import StoredFile
from agent.models.blobs import write_durably
from agent.models.holding import changing

LOCK_NAME = "models.lock.json"


class LockedModel(msgspec.Struct, frozen=True, kw_only=True):
    """The bytes that a name means on this device."""

    source: str  # as in the store: "hub owner/name", a URL, "file <path>"
    revision: str  # commit; empty where the source has none
    files: tuple[StoredFile, ...]
    licence: str
    accepted_at_ms: int | None = None  # when a person accepted the licence
    pulled_at_ms: int


class _Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    schema: int = 1
    models: dict[str, LockedModel] = {}


class LockFile:
    """The lock of one data directory. Blocking."""

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / LOCK_NAME

    def get(self, name: str) -> LockedModel | None:
        """Return what a name was locked to. Raises StorageError when the file is damaged."""
        return self._read().models.get(name)

    def put(self, name: str, model: LockedModel) -> None:
        """Record one model, the others as they are. Raises StorageError, OSError."""
        self.put_all({name: model})

    def put_all(self, models: Mapping[str, LockedModel]) -> None:
        """Record several models in one step, the others as they are. Raises StorageError, OSError."""
        with changing(self.path):
            models = {**self._read().models, **models}
            document = _Document(models=dict(sorted(models.items())))
            write_durably(self.path, msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")

    def _read(self) -> _Document:
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=_Document)
        except FileNotFoundError:
            return _Document()
        except (ValueError, OSError) as error:
            raise StorageError(f"{self.path} cannot be read: {error}; correct it or remove it") from error
