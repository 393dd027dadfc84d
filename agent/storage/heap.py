"""Memory that the C library's allocator keeps though nobody uses it any more."""

from __future__ import annotations

import ctypes


def trim() -> None:
    """Give free memory back to the system; nothing where the C library has no ``malloc_trim``.

    SQLite frees what a large transaction needed, and glibc keeps that for later, in more and more pieces: a daemon
    that runs for months would hold what its busiest minute took, several times.
    """
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if release is not None:
        release(0)
