"""Searching everything that lies on a disk for a text: the encrypted databases page by page, free pages too.

The pages are decrypted here, with the database's own key: a search of what is encrypted would find nothing,
whatever was left there. Format of a page: SQLCipher 4, https://www.zetetic.net/sqlcipher/design/
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

PAGE, RESERVED, VECTOR, SALT = 4096, 80, 16, 16
WAL_HEADER, FRAME_HEADER = 32, 24


def forms(text: str, tokens: Iterable[int] = ()) -> list[bytes]:
    """Return how a text may be written: as characters, in base 64 (three alignments), as token ids."""
    raw = text.encode()
    found = [raw, text.encode("utf-16-le"), text.encode("utf-16-be"), raw.hex().encode()]
    for shift in range(3):
        coded = base64.b64encode(b"\0" * shift + raw)
        found.append(coded[4 if shift else 0 : len(coded) // 4 * 4 - 4])  # without what its neighbours decide
    if ids := list(tokens):
        found += [struct.pack(f"<{len(ids)}{kind}", *ids) for kind in "iq"]
        found += [sep.join(map(str, ids)).encode() for sep in (",", ", ")]
    return found


def clear_pages(path: Path, key: bytes) -> bytes:
    """Return all pages of an encrypted database in the clear, in use or free."""
    raw = path.read_bytes()
    return b"".join(_clear(raw[at : at + PAGE], key, first=at == 0) for at in range(0, len(raw), PAGE))


def clear_log(path: Path, key: bytes) -> bytes:
    """Return all pages in an encrypted write-ahead log in the clear, committed or not."""
    raw = path.read_bytes()
    step = FRAME_HEADER + PAGE
    frames = [raw[at : at + step] for at in range(WAL_HEADER, len(raw) - step + 1, step)]
    return b"".join(_clear(frame[FRAME_HEADER:], key, first=struct.unpack(">I", frame[:4])[0] == 1) for frame in frames)


def _clear(page: bytes, key: bytes, *, first: bool) -> bytes:
    body = page[SALT if first else 0 : PAGE - RESERVED]
    vector = page[PAGE - RESERVED : PAGE - RESERVED + VECTOR]
    decryptor = Cipher(algorithms.AES(key), modes.CBC(vector)).decryptor()
    return decryptor.update(body) + decryptor.finalize()


def places(folders: Iterable[Path], key: bytes, needles: Iterable[bytes]) -> list[str]:
    """Return where any of the needles is, in any file below these folders: as it lies there, and decrypted."""
    found = []
    wanted = list(needles)
    for path in (one for folder in folders for one in folder.rglob("*") if one.is_file()):
        contents = {path.name: path.read_bytes()}
        if path.suffix in {".db", ".bak", ".unfinished"} or ".db." in path.name:
            contents[f"{path.name} decrypted"] = clear_pages(path, key) if path.stat().st_size % PAGE == 0 else b""
        if path.name.endswith("-wal"):
            contents[f"{path.name} decrypted"] = clear_log(path, key)
        found += [name for name, raw in contents.items() if any(one in raw for one in wanted)]
    return found
