"""Memory that is free and scattered goes back to the system."""

import ctypes
import platform

import psutil
import pytest

from agent.storage.heap import trim

PIECE, PIECES = 32 << 10, 2000  # below the size from which glibc maps memory of its own


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps it like that")
def test_free_memory_between_what_is_in_use_is_given_back():
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    pieces = [libc.malloc(PIECE) for _ in range(PIECES)]
    for piece in pieces:
        ctypes.memset(piece, 1, PIECE)
    for index, piece in enumerate(pieces):
        if index % 50 != 49:
            libc.free(piece)
    before = psutil.Process().memory_info().rss
    trim()
    assert before - psutil.Process().memory_info().rss > PIECE * PIECES / 2
    for piece in pieces[49::50]:
        libc.free(piece)
