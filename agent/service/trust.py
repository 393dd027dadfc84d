"""Whose releases are taken: ``<data dir>/release-keys.json``, apart from the keys of bundles."""

from __future__ import annotations

from pathlib import Path

import msgspec

from agent.errors import StorageError
from agent.models.blobs import write_durably
from agent.models.minisign import PublicKey, parse_public

NAME = "release-keys.json"


class ReleaseTrust:
    """The keys of one data directory."""

    def __init__(self, data_path: Path) -> None:
        self._path = data_path / NAME

    def keys(self) -> tuple[PublicKey, ...]:
        """Return the trusted keys. Raises StorageError when the list cannot be read."""
        try:
            texts = msgspec.json.decode(self._path.read_bytes(), type=tuple[str, ...])
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.DecodeError) as error:
            raise StorageError(f"{self._path} cannot be read: {error}; remove it to trust nobody") from error
        return tuple(map(parse_public, texts))

    def trust(self, key: PublicKey) -> None:
        """Take releases by this key from now on. Raises StorageError."""
        texts = tuple(dict.fromkeys([*map(str, self.keys()), str(key)]))
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_durably(self._path, msgspec.json.encode(texts))
        except OSError as error:
            raise StorageError(f"{self._path} cannot be written: {error.strerror}; check its permissions") from error
