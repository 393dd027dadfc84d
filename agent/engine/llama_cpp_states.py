"""What the slots of a llama.cpp context hold: sharing it, keeping it outside of the context, putting it back."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp.llama_cpp as native
import numpy as np

from agent.engine.runtime import RuntimeBroken, Saved


class SequenceStates:
    """The part of the runtime that moves computed tokens. ``agent.engine.runtime`` has the contracts."""

    slots: int
    _context: Any
    _memory: Any
    _filled: list[int]  # tokens of each slot
    _scratch: int  # a sequence beside the slots, empty between calls

    def share(self, source: int, target: int, start: int, end: int) -> None:
        """Append tokens of one slot to another; only marks change, not the cells."""
        self._check_span(source, start, end)
        if not 0 <= target < self.slots or source == target or self._filled[target] != start:
            raise ValueError(f"slot {target} cannot take tokens from {start} on")
        native.llama_memory_seq_cp(self._memory, source, target, start, end)
        self._filled[target] = end

    def save(self, slot: int, start: int, end: int) -> Saved:
        """Copy what was computed for some tokens."""
        self._check_span(slot, start, end)
        native.llama_memory_seq_cp(self._memory, slot, self._scratch, start, end)
        try:
            return self._saved(start, end)
        finally:
            self._clear_scratch()

    def restore(self, saved: Saved, slot: int, end: int) -> bool:
        """Append saved tokens to a slot."""
        if not 0 <= slot < self.slots or self._filled[slot] != saved.start or not saved.start < end <= saved.end:
            raise ValueError(f"slot {slot} cannot take tokens {saved.start} to {end}")
        try:
            if not self._load_scratch(saved):
                return False
            native.llama_memory_seq_cp(self._memory, self._scratch, slot, saved.start, end)
        finally:
            self._clear_scratch()
        self._filled[slot] = end
        return True

    def divide(self, saved: Saved, at: int) -> tuple[Saved, Saved] | None:
        """Cut what was saved in two."""
        if not saved.start < at < saved.end:
            raise ValueError(f"{at} is not inside of {saved.start} to {saved.end}")
        parts = []
        for start, end in ((saved.start, at), (at, saved.end)):
            try:
                if not self._load_scratch(saved):
                    return None
                native.llama_memory_seq_rm(self._memory, self._scratch, -1, start)
                native.llama_memory_seq_rm(self._memory, self._scratch, end, -1)
                parts.append(self._saved(start, end))
            finally:
                self._clear_scratch()
        return parts[0], parts[1]

    def pack(self, saved: Saved) -> memoryview:
        """Return what was saved as bytes."""
        return memoryview(saved.data)

    def unpack(self, start: int, end: int, data: memoryview) -> Saved:
        """Return what was packed, once llama.cpp has read it as these positions."""
        saved = Saved(start, end, np.frombuffer(data, np.uint8))
        try:
            if not 0 <= start < end or not data or not self._load_scratch(saved):
                raise ValueError(f"llama.cpp does not take {len(data)} bytes for tokens {start} to {end}")
            held = (
                native.llama_memory_seq_pos_min(self._memory, self._scratch),
                native.llama_memory_seq_pos_max(self._memory, self._scratch) + 1,
            )
        finally:
            self._clear_scratch()
        if held != (start, end):
            raise ValueError(f"these bytes hold tokens {held[0]} to {held[1]}, not {start} to {end}")
        return saved

    def _check_span(self, slot: int, start: int, end: int) -> None:
        if not 0 <= slot < self.slots or not 0 <= start < end <= self._filled[slot]:
            raise ValueError(f"slot {slot} does not hold tokens {start} to {end}")

    def _saved(self, start: int, end: int) -> Saved:
        size = native.llama_state_seq_get_size(self._context, self._scratch)
        data = np.empty(size, np.uint8)
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if native.llama_state_seq_get_data(self._context, pointer, size, self._scratch) != size:
            raise RuntimeBroken(f"tokens {start} to {end} cannot be saved")
        return Saved(start, end, data)

    def _load_scratch(self, saved: Saved) -> bool:
        pointer = saved.data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        read = native.llama_state_seq_set_data(self._context, pointer, saved.data.nbytes, self._scratch)
        return bool(read == saved.data.nbytes)

    def _clear_scratch(self) -> None:
        native.llama_memory_seq_rm(self._memory, self._scratch, -1, -1)

    def cut(self, slot: int, tokens: int) -> None:
        """Forget all but the first tokens of a slot."""
        self._check_span(slot, 0, tokens)
        native.llama_memory_seq_rm(self._memory, slot, tokens, -1)
        self._filled[slot] = tokens

    def clear(self, slot: int) -> None:
        """Forget all tokens of a slot."""
        native.llama_memory_seq_rm(self._memory, slot, -1, -1)
        self._filled[slot] = 0
