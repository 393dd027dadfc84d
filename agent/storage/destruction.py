"""Crypto-erase: the key goes, and with it everything that it encrypted, wherever copies of that lie."""

from __future__ import annotations

from pathlib import Path

from agent.errors import KeyProblem
from agent.storage import keys
from agent.storage.connection import DATABASE_NAME, PREFIXES_NAME, from_os_error
from agent.storage.erasure import erase, erase_all

_OLD_KEYS = ".raw-key"  # of databases that a restore set aside


def destroy(data_dir: Path) -> int:
    """Overwrite the key and older ones, then remove the database, its copies here and the saved prefixes.

    The daemon must be down (hold the instance lock). Returns how many files are gone; the next start begins with an
    empty database under a new key. Raises KeyProblem when the key is not this directory's to destroy or there is none,
    StorageError. A call that was cut short is finished by the next.
    """
    if keys.recorded_place(data_dir) is not keys.KeyPlace.FILE:
        raise KeyProblem(
            "the key belongs to the service manager: destroy the credential there, then remove the database"
        )
    gone = 0
    try:
        names = (keys.KEY_NAME, keys.NEXT_KEY_NAME)
        for path in [*(data_dir / name for name in names), *data_dir.glob(f"*{_OLD_KEYS}")]:
            gone += path.exists()
            erase(path)  # first: from here on nothing of the rest can be read
        keys.sync_folder(data_dir)
        for path in [*data_dir.glob(f"{DATABASE_NAME}*"), *data_dir.glob("before-*.db")]:
            path.unlink()
            gone += 1
        gone += erase_all(data_dir / PREFIXES_NAME)
        (data_dir / keys.PLACE_NAME).unlink(missing_ok=True)
        keys.sync_folder(data_dir)
    except OSError as error:
        raise from_os_error(error, data_dir) from error
    return gone
