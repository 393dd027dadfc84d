"""Whose bundles are taken: ``<data dir>/trusted-keys.json``. A bundle by this device itself always is."""

from __future__ import annotations

from pathlib import Path

from agent.errors import ModelRejected
from agent.models.minisign import PublicKey, SecretKey, own_key, parse_public
from agent.models.trusted_keys import TrustedKeys

OWN_KEY_NAME = "bundle-key"  # mode 0600, as minisign -G -W writes it
TRUSTED_NAME = "trusted-keys.json"


class BundleTrust(TrustedKeys):
    """The keys of one data directory. Blocking."""

    def __init__(self, data_path: Path) -> None:
        super().__init__(data_path / TRUSTED_NAME)
        self._own_path = data_path / OWN_KEY_NAME

    def own(self) -> SecretKey:
        """Return the key that this device signs with, made at first. Raises StorageError."""
        key = own_key(self._own_path, make=True)
        assert key is not None, "it was made"
        return key

    def trusts(self, key: PublicKey) -> bool:
        """Whether bundles by this key are taken. Raises StorageError when the list cannot be read."""
        own = own_key(self._own_path, make=False)
        return key in self.keys() or (own is not None and key == own.public)


def given_key(text: str) -> PublicKey:
    """Return the key of a text RW..., or of the .pub file of that path. Raises ModelRejected."""
    path = Path(text).expanduser()
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8")[:4096]
        except (OSError, UnicodeDecodeError) as error:
            raise ModelRejected(f"{path} cannot be read as a public key: {error}") from error
    return parse_public(text)
