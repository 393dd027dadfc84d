"""How much memory a model may take in this process: what is free, and no more than the ceiling that was set."""

from __future__ import annotations

from pathlib import Path

import psutil

from agent import device
from agent.engine import frames
from agent.engine.runtime import ModelUnloadable

MIB = 1 << 20


def memory_room(ceiling_bytes: int) -> int:
    """Return the bytes that weights and cache may take. Ask before the weights are mapped.

    ``ceiling_bytes`` is for this process as a whole, with what it has already; 0: there is none.
    """
    free = device.profile().memory_usable
    if not ceiling_bytes:
        return free
    taken: int = psutil.Process().memory_info().rss
    return min(free, max(0, ceiling_bytes - taken))


def require_room(load: frames.Load) -> None:
    """Refuse a model whose files alone do not fit, before one of them is read. Raises ModelUnloadable."""
    needed = file_bytes(Path(load.model.path))
    room = memory_room(load.memory_bytes)
    if needed > room:
        limit = f"of the {load.memory_bytes // MIB} MiB of engine.memory_mib" if load.memory_bytes else "free"
        raise ModelUnloadable(
            f"memory is short: the weights of {load.model.name} take {needed // MIB} MiB, {room // MIB} MiB are {limit}; "
            "take a smaller model (outrider models recommend), or close other programs"
        )


def file_bytes(path: Path) -> int:
    """Return the size of a file, or of all files in a folder; 0 where nothing can be read: loading says why."""
    try:
        return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.iterdir())
    except OSError:
        return 0
