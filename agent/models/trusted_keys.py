"""The public keys that a person has trusted for one purpose: a list in a file."""

from __future__ import annotations

from pathlib import Path

import msgspec

from agent.errors import ModelRejected, StorageError
from agent.models.blobs import write_durably
from agent.models.holding import changing_list
from agent.models.minisign import PublicKey, parse_public


class TrustedKeys:
    """The keys in one file. Blocking; reads it at every call, as others may write it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def keys(self) -> tuple[PublicKey, ...]:
        """Return them in the order in which they came. Raises StorageError when the list cannot be read."""
        try:
            texts = msgspec.json.decode(self._path.read_bytes(), type=tuple[str, ...])
            return tuple(map(parse_public, texts))
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.DecodeError, ModelRejected) as error:
            raise StorageError(f"{self._path} cannot be read: {error}; remove it to trust nobody") from error

    def trust(self, key: PublicKey) -> None:
        """Take what this key has signed from now on. Raises StorageError, WrongState."""
        with changing_list(self._path):
            self._write((*self.keys(), key))

    def distrust(self, key: PublicKey) -> bool:
        """Take it no more; return whether the key was trusted. What came in stays."""
        with changing_list(self._path):
            known = self.keys()
            self._write(tuple(one for one in known if one != key))
            return key in known

    def _write(self, keys: tuple[PublicKey, ...]) -> None:
        write_durably(self._path, msgspec.json.encode(list(dict.fromkeys(map(str, keys)))))
