"""The batch that llama.cpp decodes in one call."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import llama_cpp.llama_cpp as native
import numpy as np
from numpy.typing import NDArray

from agent.engine.runtime import Chunk

# Flash attention on a processor works on this many rows of a batch at once. Rows of several sequences
# in one such tile make it compute every row against the cells of all of them.
TILE_ROWS = 64
FEW_TOKENS = 32  # of one sequence


def few_tokens(chunks: Sequence[Chunk]) -> int:
    """Return how many chunks at the beginning are better decoded apart from the rest; 0: all go together.

    Small chunks (those that decode come first) spoil the tiles of a piece of a prompt behind them:
    with three sequences of 500 tokens at work, a piece of 64 took 470 ms with them and 280 without.
    """
    if sum(len(chunk.tokens) for chunk in chunks) < TILE_ROWS:
        return 0
    return next((index for index, chunk in enumerate(chunks) if len(chunk.tokens) >= FEW_TOKENS), 0)


class NativeBatch:
    """llama.cpp's batch over numpy arrays that are made once."""

    def __init__(self, size: int, sequences: int = 1) -> None:
        """``size`` tokens at most, each a part of up to ``sequences`` sequences."""
        self.token: NDArray[np.int32] = np.zeros(size, np.int32)
        self.pos: NDArray[np.int32] = np.zeros(size, np.int32)
        self.sequences: NDArray[np.int32] = np.zeros((size, sequences), np.int32)
        self.sequence_count: NDArray[np.int32] = np.ones(size, np.int32)
        self.wanted: NDArray[np.int8] = np.zeros(size, np.int8)
        first, step = self.sequences.ctypes.data, self.sequences.strides[0]
        pointer = ctypes.POINTER(native.llama_seq_id)
        self._rows = (pointer * size)(*(ctypes.cast(first + step * index, pointer) for index in range(size)))
        int32 = ctypes.POINTER(ctypes.c_int32)
        self.native = native.llama_batch(
            n_tokens=0,
            token=self.token.ctypes.data_as(int32),
            embd=None,
            pos=self.pos.ctypes.data_as(int32),
            n_seq_id=self.sequence_count.ctypes.data_as(int32),
            seq_id=self._rows,
            logits=self.wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )


class ChunkBatch(NativeBatch):
    """The tokens of some slots, each of one sequence."""

    def fill(self, chunks: Sequence[Chunk]) -> list[int]:
        """Lay out the chunks; return the positions in the batch whose rows are wanted."""
        at = 0
        rows_at: list[int] = []
        for slot, start, tokens, wants_row, drafted in chunks:
            end = at + len(tokens)
            self.token[at:end] = tokens
            self.pos[at:end] = np.arange(start, start + len(tokens))
            self.sequences[at:end, 0] = slot
            self.wanted[at:end] = 0
            if wants_row:
                first = end - 1 - drafted
                self.wanted[first:end] = 1
                rows_at += range(first, end)
            at = end
        self.native.n_tokens = at
        return rows_at

    def fill_one_each(self, slots: Sequence[int], tokens: Sequence[int], positions: Sequence[int]) -> None:
        """Lay out one token of each slot; all rows are wanted, in this order."""
        count = len(slots)
        self.token[:count] = tokens
        self.pos[:count] = positions
        self.sequences[:count, 0] = slots
        self.wanted[:count] = 1
        self.native.n_tokens = count
