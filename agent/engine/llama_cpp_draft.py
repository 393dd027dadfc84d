"""A second, smaller model in llama.cpp that says what the first one will probably say next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llama_cpp.llama_cpp as native
import numpy as np

from agent.engine import frames
from agent.engine.kv_cache import cell_count
from agent.engine.llama_cpp_batch import ChunkBatch
from agent.engine.memory_room import memory_room
from agent.engine.prefix_cache import agreeing
from agent.engine.runtime import Chunk, ModelUnloadable, RuntimeBroken
from agent.types import ModelFile, ModelFormat

BATCH_TOKENS = 512
F16_BYTES = 2


class LlamaCppDraft:
    """Implements ``Drafter``. Used by the thread of the scheduler."""

    def __init__(self, load: frames.Load, *, threads: Callable[[], int]) -> None:
        """Load ``load.model.draft``; ``threads()`` gives the number for the next step.

        Raises ModelUnloadable, also when a token of one model is another in the other.
        """
        file = load.model.draft
        assert file is not None
        self._threads = threads
        room_bytes = memory_room(load.memory_bytes)
        self._model = _loaded(file)
        _require_same_tokens(load.model, file, self._model)
        shares = not (native.llama_model_is_recurrent(self._model) or native.llama_model_is_hybrid(self._model))
        if not shares:
            raise ModelUnloadable(f"model {file.name} cannot draft: what it has read cannot be taken back")
        heads = max(1, native.llama_model_n_head(self._model))
        width = native.llama_model_n_embd(self._model) // heads * native.llama_model_n_head_kv(self._model)
        parameters = native.llama_context_default_params()
        parameters.n_ctx = cell_count(
            load.parallel * load.context_tokens,
            cell_bytes=max(1, 2 * F16_BYTES * width * native.llama_model_n_layer(self._model)),
            free_bytes=room_bytes,
            weight_bytes=native.llama_model_size(self._model),
        )
        parameters.n_batch = parameters.n_ubatch = max(BATCH_TOKENS, load.parallel)
        parameters.n_seq_max = parameters.n_outputs_max = load.parallel
        parameters.kv_unified = True
        parameters.no_perf = True
        self._context = native.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise ModelUnloadable(f"no context of {parameters.n_ctx} tokens for {file.name}, which drafts")
        self._memory = native.llama_get_memory(self._context)
        self._cells = native.llama_n_ctx(self._context)
        self._batch_tokens = native.llama_n_batch(self._context)
        self._batch = ChunkBatch(self._batch_tokens)
        self._vocabulary_size = native.llama_vocab_n_tokens(native.llama_model_get_vocab(self._model))
        self._held: list[list[int]] = [[] for _ in range(load.parallel)]

    def unread(self, texts: Sequence[tuple[int, Sequence[int]]]) -> int:
        """Return how many tokens have to be read before the next ones can be told."""
        return sum(len(tokens) - int(agreeing(self._held[slot], list(tokens), 0)) for slot, tokens in texts)

    def read(self, texts: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Read all but the last token of each text. Raises RuntimeBroken."""
        for slot, tokens in texts:
            begin = self._cut_back(slot, tokens)
            for start in range(begin, len(tokens) - 1, self._batch_tokens):
                self._decode(
                    [Chunk(slot, start, tokens[start : min(start + self._batch_tokens, len(tokens) - 1)], False)]
                )

    def guess(self, texts: Sequence[tuple[int, Sequence[int]]], count: int) -> list[list[int]]:
        """Return the likeliest ``count`` next tokens of each text, one after another; no slot comes twice.

        Where its memory is full it forgets everything and knows nothing: empty lists. Raises RuntimeBroken.
        """
        if sum(len(tokens) for _, tokens in texts) + count * len(texts) > self._cells:
            self._forget_all()
            return [[] for _ in texts]
        begins = [min(self._cut_back(slot, tokens), len(tokens) - 1) for slot, tokens in texts]
        if sum(len(tokens) - begin for (_, tokens), begin in zip(texts, begins, strict=True)) > self._batch_tokens:
            self.read(texts)
            begins = [len(tokens) - 1 for _, tokens in texts]
        chunks = [
            Chunk(slot, begin, tokens[begin:], wants_row=True)
            for (slot, tokens), begin in zip(texts, begins, strict=True)
        ]
        guesses: list[list[int]] = [[] for _ in texts]
        for number in range(count):
            drawn = self._decode(chunks)
            for guess, token in zip(guesses, drawn, strict=True):
                guess.append(token)
            if number + 1 < count:
                chunks = [
                    Chunk(slot, len(tokens) + number, [guess[-1]], wants_row=True)
                    for (slot, tokens), guess in zip(texts, guesses, strict=True)
                ]
        return guesses

    def _cut_back(self, slot: int, tokens: Sequence[int]) -> int:
        """Forget what the slot holds beyond the text, and at least its last token; return how many stay."""
        kept = min(agreeing(self._held[slot], list(tokens), 0), len(tokens) - 1)
        if kept < len(self._held[slot]):
            native.llama_memory_seq_rm(self._memory, slot, kept, -1)
            del self._held[slot][kept:]
        return kept

    def _forget_all(self) -> None:
        native.llama_memory_clear(self._memory, False)
        self._held = [[] for _ in self._held]

    def _decode(self, chunks: Sequence[Chunk]) -> list[int]:
        """Read the chunks; return the likeliest token after each that wants a row."""
        if sum(map(len, self._held)) + sum(len(chunk.tokens) for chunk in chunks) > self._cells:
            busy = {chunk.slot for chunk in chunks}
            for slot, held in enumerate(self._held):
                if slot not in busy and held:
                    native.llama_memory_seq_rm(self._memory, slot, -1, -1)
                    held.clear()
        rows_at = self._batch.fill(chunks)
        threads = self._threads()
        native.llama_set_n_threads(self._context, threads, threads)
        status = native.llama_decode(self._context, self._batch.native)
        if status != 0:
            raise RuntimeBroken(f"llama_decode returned {status} while drafting")
        for chunk in chunks:
            self._held[chunk.slot] += chunk.tokens
        return [self._likeliest(index) for index in rows_at]

    def _likeliest(self, index: int) -> int:
        pointer = native.llama_get_logits_ith(self._context, index)
        if not pointer:
            raise RuntimeBroken(f"no logits for position {index} of a draft")
        return int(np.argmax(np.ctypeslib.as_array(pointer, shape=(self._vocabulary_size,))))

    def close(self) -> None:
        """Free the model; nothing may be called afterwards."""
        native.llama_free(self._context)
        native.llama_model_free(self._model)


def _loaded(file: ModelFile, *, vocabulary_only: bool = False) -> Any:
    if file.format is not ModelFormat.GGUF:
        raise ModelUnloadable(f"model {file.name} is {file.format}: only GGUF models draft, and only for GGUF models")
    parameters = native.llama_model_default_params()
    parameters.n_gpu_layers = 0
    parameters.vocab_only = vocabulary_only
    model = native.llama_model_load_from_file(file.path.encode(), parameters)
    if not model:
        raise ModelUnloadable(f"llama.cpp refuses the file of {file.name}, which drafts")
    return model


def _require_same_tokens(file: ModelFile, draft: ModelFile, draft_model: Any) -> None:
    """Refuse a draft of other tokens: its guesses would be numbers without sense."""
    model = _loaded(file, vocabulary_only=True)
    try:
        ours, theirs = native.llama_model_get_vocab(model), native.llama_model_get_vocab(draft_model)
        here, there = native.llama_vocab_n_tokens(ours), native.llama_vocab_n_tokens(theirs)
        advice = "take a model of the same family for engine.draft_model, or leave it empty"
        if here != there:
            raise ModelUnloadable(f"{draft.name} cannot draft for {file.name}: {there} tokens, not {here}; {advice}")
        for token in range(here):
            pairs = ((told(ours, token), told(theirs, token)) for told in _TOLD)
            if any(one != other for one, other in pairs):
                raise ModelUnloadable(f"{draft.name} cannot draft for {file.name}: token {token} differs; {advice}")
    finally:
        native.llama_model_free(model)


_TOLD = (native.llama_vocab_get_text, native.llama_vocab_get_attr, native.llama_vocab_is_eog)
