"""Keys and values of tokens in memory of our own, laid out as a decoder graph takes them."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROUNDED_TO = 256  # tokens: a row then ends with a page of memory, whatever the model

Values = NDArray[Any]  # keys and values: (twice the layers, heads, tokens, values of a head)


class KeyValues:
    """Rows of keys and values. Memory is taken when it is first written, and given back by ``forget``."""

    def __init__(self, shape: tuple[int, int, int], data_type: type, *, rows: int, tokens: int) -> None:
        """``shape``: twice the layers, heads, values of a head. A row has room for ``tokens`` and at least one more."""
        layers, heads, width = shape
        self.rows = rows
        self.length = (tokens // ROUNDED_TO + 1) * ROUNDED_TO
        size = layers * rows * heads * self.length * width * np.dtype(data_type).itemsize
        if hasattr(mmap, "MAP_ANONYMOUS"):
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
            self._memory = mmap.mmap(-1, size, flags=flags)
        else:
            self._memory = mmap.mmap(-1, size)
        self.data: Values = np.frombuffer(self._memory, data_type).reshape(layers, rows, heads, self.length, width)

    def read(self, row: int, start: int, end: int) -> Values:
        """Return the values of some tokens; a view."""
        return self.data[:, row, :, start:end]

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Copy tokens from row to row."""
        self.data[:, target, :, start:end] = self.data[:, source, :, start:end]

    def forget(self, row: int) -> None:
        """Give the memory of a row back."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        layer = self.data[0]
        each = layer[0].nbytes
        for number in range(len(self.data)):
            self._memory.madvise(mmap.MADV_DONTNEED, number * layer.nbytes + row * each, each)
