"""Signatures in the format of minisign: Ed25519 over the BLAKE2b-512 digest of what is signed.

What is written here can be checked with `minisign -V`, and the other way round. The format is
that of https://jedisct1.github.io/minisign/; the curve is libsodium's, by PyNaCl.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from pathlib import Path

import msgspec

from agent.errors import ModelRejected, StorageError
from agent.models.blobs import write_durably
from agent.models.holding import changing

_KEY_ALGORITHM = b"Ed"
_SIGNATURE_ALGORITHM = b"ED"  # of the digest, not of the message itself
_COMMENT = "untrusted comment: "
_TRUSTED = "trusted comment: "
FIRST_LINE = f"{_COMMENT}signature by Outrider"
_LONGEST = 4096  # characters of a key or signature


class PublicKey(msgspec.Struct, frozen=True):
    """Whom a signature is from."""

    number: bytes  # 8 bytes that tell keys apart
    point: bytes  # 32 bytes

    def __str__(self) -> str:
        """Return the key as minisign prints it, RW... ."""
        return base64.b64encode(_KEY_ALGORITHM + self.number + self.point).decode()

    @property
    def fingerprint(self) -> str:
        """For people to compare: the SHA-256 of the 32 bytes, its first half in groups of four."""
        digest = hashlib.sha256(self.point).hexdigest()[:32]
        return " ".join(digest[at : at + 4] for at in range(0, 32, 4))

    @property
    def file(self) -> str:
        """The text of a .pub file."""
        return f"{_COMMENT}minisign public key {self.number[::-1].hex().upper()}\n{self}\n"


class SecretKey(msgspec.Struct, frozen=True):
    """Signs. Never shown, logged or put into a bundle."""

    number: bytes
    seed: bytes  # 32 bytes

    def __repr__(self) -> str:
        return f"SecretKey({self.number.hex()})"

    @property
    def public(self) -> PublicKey:
        from nacl.signing import SigningKey

        return PublicKey(self.number, bytes(SigningKey(self.seed).verify_key))

    def sign(self, data: bytes, comment: str) -> str:
        """Return the text of a .minisig file; ``comment`` is one line, signed as well."""
        from nacl.signing import SigningKey

        key = SigningKey(self.seed)
        signature = key.sign(_digest(data)).signature
        both = key.sign(signature + comment.encode()).signature
        first = base64.b64encode(_SIGNATURE_ALGORITHM + self.number + signature).decode()
        return f"{_COMMENT}signature by Outrider\n{first}\n{_TRUSTED}{comment}\n{base64.b64encode(both).decode()}\n"


def parse_public(text: str) -> PublicKey:
    """Read a key as minisign prints it, or the text of a .pub file. Raises ModelRejected."""
    raw = _decoded(text.strip().splitlines()[-1] if text.strip() else "", 42, "a public key of minisign (RW...)")
    if raw[:2] != _KEY_ALGORITHM:
        raise ModelRejected("this is no public key of minisign: it does not begin with RW")
    return PublicKey(raw[2:10], raw[10:])


def verify(key: PublicKey, data: bytes, signature: str) -> str:
    """Return the signed comment. Raises ModelRejected when anything of it is not by that key."""
    from nacl.exceptions import BadSignatureError
    from nacl.signing import VerifyKey

    lines = signature.split("\n")
    if len(lines) != 5 or lines[4] or not lines[0].startswith(_COMMENT) or not lines[2].startswith(_TRUSTED):
        raise ModelRejected("the signature is not one of minisign")
    raw, both = _decoded(lines[1], 74, "a signature"), _decoded(lines[3], 64, "a signature")
    if raw[:2] != _SIGNATURE_ALGORITHM or raw[2:10] != key.number:
        raise ModelRejected("the signature is by another key, or of an old kind")
    comment = lines[2].removeprefix(_TRUSTED)
    try:
        VerifyKey(key.point).verify(_digest(data), raw[10:])
        VerifyKey(key.point).verify(raw[10:] + comment.encode(), both)
    except (BadSignatureError, ValueError) as error:
        raise ModelRejected("the signature does not hold: what it covers was altered or is damaged") from error
    return comment


def own_key(path: Path, *, make: bool) -> SecretKey | None:
    """Return this device's key, made at first where ``make`` is set. Raises StorageError."""
    try:
        return _parse_secret(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        if not make:
            return None
    except (OSError, ValueError, ModelRejected) as error:
        raise StorageError(f"{path} cannot be read: {error}; remove it to have a new key made") from error
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with changing(path):
            if path.exists():  # another call was first
                return own_key(path, make=False)
            key = SecretKey(secrets.token_bytes(8), secrets.token_bytes(32))
            write_durably(path, _secret_file(key).encode("ascii"))
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}; check its permissions and the free space"
        ) from error
    return key


def _secret_file(key: SecretKey) -> str:
    """Return the text of a .key file without a passphrase, as `minisign -G -W` writes it."""
    pair = key.seed + key.public.point
    check = hashlib.blake2b(_KEY_ALGORITHM + key.number + pair, digest_size=32).digest()
    raw = _KEY_ALGORITHM + b"\0\0" + b"B2" + bytes(48) + key.number + pair + check
    return f"{_COMMENT}minisign secret key\n{base64.b64encode(raw).decode()}\n"


def _parse_secret(text: str) -> SecretKey:
    lines = text.splitlines()
    raw = _decoded(lines[1] if len(lines) > 1 else "", 158, "a secret key of minisign")
    number, pair, check = raw[54:62], raw[62:126], raw[126:]
    if raw[:6] != _KEY_ALGORITHM + b"\0\0" + b"B2":
        raise ModelRejected("not a secret key without passphrase")
    if hashlib.blake2b(_KEY_ALGORITHM + number + pair, digest_size=32).digest() != check:
        raise ModelRejected("it is damaged")
    return SecretKey(number, pair[:32])


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data).digest()


def _decoded(text: str, length: int, what: str) -> bytes:
    try:
        raw = base64.b64decode(text[:_LONGEST], validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    # Every text stands for one value only: no spare bits, no spaces.
    if len(raw) != length or base64.b64encode(raw).decode() != text:
        raise ModelRejected(f"this is not {what}")
    return raw
