"""What the rows of an ONNX decoder hold: sharing it, keeping it outside, putting it back."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from agent.engine.key_values import KeyValues, Values
from agent.engine.onnx_decoder import OnnxDecoder
from agent.engine.runtime import Saved

_HEAD = struct.Struct("<qq")  # first position, the one after the last


class RowStates:
    """The part of the runtime that moves computed tokens. ``agent.engine.runtime`` has the contracts.

    Saved data are bytes: the positions, then the keys and values of the tokens.
    """

    slots: int
    _decoder: OnnxDecoder
    _values: KeyValues
    _filled: list[int]  # tokens of each slot
    _prompting: list[bool]

    def share(self, source: int, target: int, start: int, end: int) -> None:
        """Append tokens of one slot to another: a copy, in the room that the other has anyway."""
        self._check_span(source, start, end)
        if not 0 <= target < self.slots or source == target or self._filled[target] != start:
            raise ValueError(f"slot {target} cannot take tokens from {start} on")
        self._values.copy(source, target, start, end)
        self._filled[target] = end

    def save(self, slot: int, start: int, end: int) -> Saved:
        """Copy what was computed for some tokens."""
        self._check_span(slot, start, end)
        return self._saved(start, end, self._values.read(slot, start, end))

    def restore(self, saved: Saved, slot: int, end: int) -> bool:
        """Append saved tokens to a slot. There is always room for what a slot may hold."""
        if not 0 <= slot < self.slots or self._filled[slot] != saved.start or not saved.start < end <= saved.end:
            raise ValueError(f"slot {slot} cannot take tokens {saved.start} to {end}")
        self._values.read(slot, saved.start, end)[:] = self._kept(saved)[:, :, : end - saved.start]
        self._filled[slot] = end
        return True

    def divide(self, saved: Saved, at: int) -> tuple[Saved, Saved]:
        """Cut what was saved in two."""
        if not saved.start < at < saved.end:
            raise ValueError(f"{at} is not inside of {saved.start} to {saved.end}")
        kept, inside = self._kept(saved), at - saved.start
        return self._saved(saved.start, at, kept[:, :, :inside]), self._saved(at, saved.end, kept[:, :, inside:])

    def pack(self, saved: Saved) -> memoryview:
        """Return what was saved as bytes."""
        return memoryview(saved.data)

    def unpack(self, start: int, end: int, data: memoryview) -> Saved:
        """Return what was packed, once its size and positions are known to be right."""
        size = _HEAD.size + max(0, end - start) * self._decoder.cell_bytes
        if not 0 <= start < end or len(data) != size or _HEAD.unpack_from(data) != (start, end):
            raise ValueError(f"these {len(data)} bytes are not of tokens {start} to {end}")
        return Saved(start, end, np.frombuffer(data, np.uint8))

    def _saved(self, start: int, end: int, values: Values) -> Saved:
        data: NDArray[np.uint8] = np.empty(_HEAD.size + values.nbytes, np.uint8)
        _HEAD.pack_into(data.data, 0, start, end)
        data[_HEAD.size :].view(values.dtype).reshape(values.shape)[:] = values
        return Saved(start, end, data)

    def _kept(self, saved: Saved) -> Values:
        layers, heads, width = self._decoder.shape
        values: Values = saved.data[_HEAD.size :].view(self._decoder.data_type)
        return values.reshape(layers, heads, saved.end - saved.start, width)

    def _check_span(self, slot: int, start: int, end: int) -> None:
        if not 0 <= slot < self.slots or not 0 <= start < end <= self._filled[slot]:
            raise ValueError(f"slot {slot} does not hold tokens {start} to {end}")

    def cut(self, slot: int, tokens: int) -> None:
        """Forget all but the first tokens of a slot."""
        self._check_span(slot, 0, tokens)
        self._filled[slot] = tokens

    def clear(self, slot: int) -> None:
        """Forget all tokens of a slot, and give their memory back."""
        if self._filled[slot]:
            self._values.forget(slot)
        self._filled[slot] = 0
        self._prompting[slot] = True
