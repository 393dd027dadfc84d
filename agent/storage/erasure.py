"""Removing a file so that its bytes are gone, as far as a file system lets a program do that.

A disk that writes elsewhere than it was told (flash, copy-on-write) keeps old bytes for a while:
what lies there is encrypted, and `outrider key rotate` makes it unreadable.
"""

from __future__ import annotations

import os
from pathlib import Path

from agent.errors import StorageError
from agent.storage.connection import from_os_error

_CHUNK = bytes(1 << 20)


def erase(path: Path) -> None:
    """Overwrite a file with zeros, then remove it. One that is not there is gone already."""
    try:
        with path.open("r+b") as file:
            left = os.fstat(file.fileno()).st_size
            while left > 0:
                left -= file.write(_CHUNK[:left])
            file.flush()
            os.fsync(file.fileno())
    except FileNotFoundError:
        return
    except OSError as error:
        raise from_os_error(error, path) from error
    finally:
        path.unlink(missing_ok=True)


def erase_all(folder: Path) -> int:
    """Erase every file of a folder, and the folder. Returns how many there were."""
    if not folder.is_dir():
        return 0
    files = [path for path in folder.iterdir() if path.is_file() and not path.is_symlink()]
    for path in files:
        erase(path)
    try:
        folder.rmdir()
    except OSError as error:
        raise StorageError(f"{folder} holds what is not of Outrider: {error.strerror}; look into it") from error
    return len(files)
