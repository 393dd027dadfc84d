"""A decoder graph on ONNX Runtime, with keys and values in memory of our own.

A row of that memory is a slot: where its tokens end is said anew with every run, so that they can
be cut, copied and kept by copying parts of it.

A graph of onnxruntime-genai's model builder writes the keys and values of new tokens into the
buffer that it reads the old ones from: its GroupQueryAttention is given our memory for both. One
token each of many rows goes through it at once. Several tokens of one row do too, but not of two
rows: GroupQueryAttention refuses that. Other graphs, such as optimum exports them, give back all
keys and values in each run, longer by the new ones: they run row by row, on copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.engine import logit_rows, onnx_session
from agent.engine.generation_folder import GenerationFolder
from agent.engine.key_values import KeyValues
from agent.engine.runtime import ModelUnloadable, RuntimeBroken

LONGEST_REASON = 400  # characters
# As fast as spinning without end where the cores are free (without any, a token takes a third longer);
# where they are not, that would be three times slower.
SPIN_US = 30
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


class OnnxDecoder:
    """One graph in memory. Used by one thread."""

    def __init__(self, folder: GenerationFolder, threads: int) -> None:
        """Load the graph with a fixed number of threads. Raises ModelUnloadable."""
        self.vocabulary_size = folder.vocabulary_size
        self.joins = folder.shares_buffer  # whether several rows go through the graph at once
        decoder = folder.decoder
        layers = range(decoder.num_hidden_layers)
        given, made = decoder.inputs, decoder.outputs
        self._past = _names(layers, given.past_key_names, given.past_value_names)
        self._present = _names(layers, made.present_key_names, made.present_value_names)
        self._ids, self._mask, self._positions = given.input_ids, given.attention_mask, given.position_ids
        self._logits = made.logits
        self.shape = (len(self._past), decoder.num_key_value_heads, decoder.head_size)
        graph = _with_chosen_rows(folder.graph_path, self._logits)
        self._chooses = graph is not None
        settings = onnx_session.options(threads, spin_us=SPIN_US)
        # Plans of memory are kept for every length that was ever run: that never ends.
        settings.enable_mem_pattern = False
        self._session = onnx_session.open_session(folder.graph_path, settings, content=graph)
        inputs = {one.name: one for one in self._session.get_inputs()}
        outputs = {one.name: one for one in self._session.get_outputs()}
        _check_names("inputs", set(inputs), {self._ids, self._mask, *self._past}, {self._positions, logit_rows.CHOSEN})
        _check_names("outputs", set(outputs), {self._logits, *self._present}, {logit_rows.HIDDEN})
        self._has_positions = self._positions in inputs
        self.data_type = _type_of(inputs[self._past[0]])
        self._ids_type, self._mask_type = _type_of(inputs[self._ids]), _type_of(inputs[self._mask])
        self._logits_type = _type_of(outputs[self._logits])
        self.hidden_width, self._hidden_type = _hidden(outputs)
        self.hidden: NDArray[np.float32] = np.zeros((0, 0, self.hidden_width), np.float32)
        for name in self._past:
            self._check_shape(inputs[name])
        last = outputs[self._logits].shape
        if len(last) != 3 or last[1] == 1 or (isinstance(last[2], int) and last[2] != self.vocabulary_size):
            raise ModelUnloadable(
                f"the graph's {self._logits} are of {last}: wanted are those of every token, for a vocabulary of "
                f"{self.vocabulary_size} (the builder's option prune_lm_head leaves all but the last out)"
            )
        self._bound: dict[tuple[int, int, int, bool], Any] = {}

    def _check_shape(self, past: Any) -> None:
        _, heads, width = self.shape
        shape = past.shape
        fits = len(shape) == 4 and all(
            size == wanted or not isinstance(size, int)  # a size that is not fixed is a name
            for size, wanted in ((shape[1], heads), (shape[3], width))
        )
        if not fits or _type_of(past) is not self.data_type:
            raise ModelUnloadable(
                f"the graph's input {past.name} is {past.type} of {shape}, genai_config.json says "
                f"{heads} heads of {width}: the files are not of one model"
            )

    @property
    def cell_bytes(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        layers, heads, width = self.shape
        return layers * heads * width * int(np.dtype(self.data_type).itemsize)

    def key_values(self, *, rows: int, tokens: int) -> KeyValues:
        """Return empty rows with room for so many tokens each. Raises ModelUnloadable."""
        try:
            return KeyValues(self.shape, self.data_type, rows=rows, tokens=tokens)
        except (OSError, OverflowError, ValueError) as error:
            raise ModelUnloadable(
                f"no memory for {rows} times {tokens} tokens of {self.cell_bytes} bytes ({error}); see "
                "engine.context_tokens and engine.parallel"
            ) from error

    def run(
        self,
        values: KeyValues,
        first: int,
        tokens: Sequence[Sequence[int]],
        ends: Sequence[int],
        *,
        chosen: Sequence[int] = (),
        hidden: bool = False,
    ) -> NDArray[np.float32]:
        """Append tokens to rows from ``first`` on, as many to each; ``ends`` are the lengths of the rows after it.

        More than one token only with one row. Returns the logits of the ``chosen`` ones of these
        tokens, counted from 0: (rows, chosen, vocabulary). With ``hidden``, the attribute of that
        name has their hidden states: (rows, chosen, hidden_width). Raises RuntimeBroken.
        """
        if not self.joins:
            each = zip(range(first, first + len(tokens)), tokens, ends, strict=True)
            told = [self._run_row(values, row, new, end, chosen) for row, new, end in each]
            self.hidden = np.concatenate([states for _, states in told])
            return np.concatenate([logits for logits, _ in told])
        ids = np.asarray(tokens, self._ids_type)
        rows, count = ids.shape
        binding = self._binding(values, first, rows, hidden=hidden)
        fed = self._feeds(ids, ends, chosen)
        for name, given in fed.items():
            binding.bind_input(name, "cpu", 0, given.dtype.type, given.shape, given.ctypes.data)
        made = max(1, len(chosen)) if self._chooses else count
        logits: NDArray[Any] = np.empty((rows, made, self.vocabulary_size), self._logits_type)
        binding.bind_output(self._logits, "cpu", 0, self._logits_type, logits.shape, logits.ctypes.data)
        states: NDArray[Any] = np.empty((rows, made, self.hidden_width), self._hidden_type)
        if hidden:
            binding.bind_output(logit_rows.HIDDEN, "cpu", 0, self._hidden_type, states.shape, states.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise RuntimeBroken(f"ONNX Runtime: {_reason(error)}") from error
        self.hidden = states.astype(np.float32, copy=False)
        return self._chosen(logits, chosen)

    def _run_row(
        self, values: KeyValues, row: int, tokens: Sequence[int], end: int, chosen: Sequence[int]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Run a graph that gives back all keys and values; keep those of the new tokens."""
        start = end - len(tokens)
        past = {
            name: np.ascontiguousarray(layer[row : row + 1, :, :start])
            for name, layer in zip(self._past, values.data, strict=True)
        }
        ids = np.asarray([tokens], self._ids_type)
        try:
            states = [logit_rows.HIDDEN] if self.hidden_width else []
            made = self._session.run([self._logits, *self._present, *states], self._feeds(ids, [end], chosen) | past)
            logits, present = made[0], made[1 : 1 + len(self._present)]
            for layer, whole in zip(values.data, present, strict=True):
                layer[row, :, start:end] = whole[0, :, start:end]
        except Exception as error:
            raise RuntimeBroken(f"ONNX Runtime: {_reason(error)}") from error
        if logits.shape[1:] != (max(1, len(chosen)) if self._chooses else len(tokens), self.vocabulary_size):
            raise RuntimeBroken(f"the graph gives logits of {logits.shape} for {len(tokens)} tokens")
        hidden = made[-1].astype(np.float32, copy=False) if states else np.zeros((1, 0, 0), np.float32)
        return self._chosen(logits, chosen), hidden

    def _feeds(self, ids: NDArray[Any], ends: Sequence[int], chosen: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Return all inputs but the past."""
        count = ids.shape[1]
        mask = (np.arange(max(ends)) < np.asarray(ends)[:, None]).astype(self._mask_type)
        fed = {self._ids: ids, self._mask: mask}
        if self._has_positions:
            fed[self._positions] = (np.asarray(ends)[:, None] - count + np.arange(count)).astype(self._ids_type)
        if self._chooses:
            fed[logit_rows.CHOSEN] = np.asarray(chosen or (count - 1,), np.int64)
        return fed

    def _chosen(self, logits: NDArray[Any], chosen: Sequence[int]) -> NDArray[np.float32]:
        kept = logits[:, : len(chosen)] if self._chooses else logits[:, list(chosen)]
        return kept.astype(np.float32, copy=False)

    def _binding(self, values: KeyValues, first: int, rows: int, *, hidden: bool) -> Any:
        """Return where the keys and values of some rows are read and written."""
        key = (id(values), first, rows, hidden)
        if (known := self._bound.get(key)) is not None:
            return known
        binding = self._session.io_binding()
        for past, present, layer in zip(self._past, self._present, values.data, strict=True):
            part = layer[first : first + rows]
            binding.bind_input(past, "cpu", 0, self.data_type, part.shape, part.ctypes.data)
            binding.bind_output(present, "cpu", 0, self.data_type, part.shape, part.ctypes.data)
        self._bound[key] = binding
        return binding

    def release(self, values: KeyValues) -> None:
        """Forget where rows are that are about to be freed."""
        self._bound = {key: binding for key, binding in self._bound.items() if key[0] != id(values)}

    def close(self) -> None:
        """Free the graph."""
        self._bound.clear()
        del self._session


def _with_chosen_rows(path: Path, logits: str) -> bytes | None:
    try:
        return logit_rows.with_chosen_rows(path, logits)
    except Exception as error:  # of a library that reads what may be damaged
        raise ModelUnloadable(f"{path.name} cannot be read: {_reason(error)}") from error


def _names(layers: range, *patterns: str) -> list[str]:
    return [pattern.replace("%d", str(layer)) for layer in layers for pattern in patterns]


def _check_names(what: str, found: set[str], wanted: set[str], optional: set[str]) -> None:
    missing, unknown = sorted(wanted - found), sorted(found - wanted - optional)
    if missing or unknown:
        told = [f"{names[0]} is {how}" for names, how in ((missing, "missing"), (unknown, "not known")) if names]
        raise ModelUnloadable(f"the graph's {what} are not what genai_config.json says: {', '.join(told)}")


def _hidden(outputs: dict[str, Any]) -> tuple[int, Any]:
    """Return the length of a hidden state, 0 where the graph gives none, and the type of its numbers."""
    found = outputs.get(logit_rows.HIDDEN)
    if found is None or len(found.shape) != 3 or not isinstance(found.shape[2], int):
        return 0, np.float32
    return found.shape[2], _type_of(found)


def _type_of(one: Any) -> Any:
    found = _TYPES.get(one.type)
    if found is None:
        raise ModelUnloadable(f"the graph's {one.name} is {one.type}, which is not supported")
    return found


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:LONGEST_REASON]
