"""Whose bundles are taken: ``<data dir>/trusted-keys.json``. A bundle by this device itself always is."""

from __future__ import annotations

from pathlib import Path

import msgspec

from agent.errors import ModelRejected, StorageError
from agent.models.blobs import write_durably
from agent.models.minisign import PublicKey, SecretKey, own_key, parse_public

OWN_KEY_NAME = "bundle-key"  # mode 0600, as minisign -G -W writes it
TRUSTED_NAME = "trusted-keys.json"


class BundleTrust:
    """The keys of one data directory. Blocking."""

    def __init__(self, data_path: Path) -> None:
        self._own_path = data_path / OWN_KEY_NAME
        self._path = data_path / TRUSTED_NAME

    def own(self) -> SecretKey:
        """Return the key that this device signs with, made at first. Raises StorageError."""
        key = own_key(self._own_path, make=True)
        assert key is not None, "it was made"
        return key

    def trusts(self, key: PublicKey) -> bool:
        """Whether bundles by this key are taken. Raises StorageError when the list cannot be read."""
        own = own_key(self._own_path, make=False)
        return str(key) in self.trusted() or (own is not None and key == own.public)

    def trusted(self) -> tuple[str, ...]:
        """Return the keys that a person has trusted, as minisign prints them."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=tuple[str, ...])
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.DecodeError) as error:
            raise StorageError(f"{self._path} cannot be read: {error}; remove it to trust nobody") from error

    def trust(self, key: PublicKey) -> None:
        """Take bundles by this key from now on."""
        self._write(tuple(dict.fromkeys([*self.trusted(), str(key)])))

    def distrust(self, key: PublicKey) -> bool:
        """Take them no more; return whether it was trusted. What came in stays."""
        known = self.trusted()
        self._write(tuple(one for one in known if one != str(key)))
        return str(key) in known

    def _write(self, keys: tuple[str, ...]) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_durably(self._path, msgspec.json.encode(keys))
        except OSError as error:
            raise StorageError(f"{self._path} cannot be written: {error.strerror}; check its permissions") from error


def given_key(text: str) -> PublicKey:
    """Return the key of a text RW..., or of the .pub file of that path. Raises ModelRejected."""
    path = Path(text).expanduser()
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8")[:4096]
        except (OSError, UnicodeDecodeError) as error:
            raise ModelRejected(f"{path} cannot be read as a public key: {error}") from error
    return parse_public(text)
