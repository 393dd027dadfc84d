"""llama.cpp through the low-level bindings: one context, several sequences in it.

The native library ends the process on much that is invalid (a batch above its limit, a
sampler on a row without output), so everything is checked here before it gets there.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import llama_cpp.llama_cpp as native
import numpy as np

from agent.engine import frames
from agent.engine.chat_template import ChatTemplate
from agent.engine.control_texts import ControlTexts
from agent.engine.grammar import Vocabulary
from agent.engine.kv_cache import BYTES_PER_VALUE, cell_count
from agent.engine.llama_cpp_adapter import LlamaCppAdapter
from agent.engine.llama_cpp_batch import ChunkBatch, few_tokens
from agent.engine.llama_cpp_scoring import LlamaCppScoring
from agent.engine.llama_cpp_states import SequenceStates
from agent.engine.memory_room import memory_room
from agent.engine.prompt_tokens import PromptMethods, PromptTokens
from agent.engine.relaid_weights import STORED_AS, is_relaid, leave
from agent.engine.runtime import Chunk, ModelUnloadable, PromptRejected, Row, RuntimeBroken, check_chunks
from agent.engine.threads import StepKind, StepThreads
from agent.engine.worker_status import ModelTraits, ThreadChoice
from agent.llama_library import load_backends
from agent.types import KvType

BATCH_TOKENS = 512  # what a fast machine computes in a step; the scheduler sees to it that none takes long
DRAFTED_TOKENS = 24  # in one step; more never pays on a processor, and each takes memory for a row
CELLS_TOGETHER = 512  # up to so many taken cells, all chunks of a step go through the model in one call
SAVED_SHARE = 0.5  # tokens of kept beginnings, of those that all slots hold
KV_TYPES = {KvType.F16: native.GGML_TYPE_F16, KvType.Q8_0: native.GGML_TYPE_Q8_0}


class LlamaCppRuntime(SequenceStates, PromptMethods):
    """A GGUF model in memory. Used by one thread."""

    def __init__(self, load: frames.Load) -> None:
        """Load the model. Raises ModelUnloadable."""
        load_backends()
        room_bytes = memory_room(load.memory_bytes)
        self.name = f"llama.cpp {native.llama_version().decode()}"
        self.slots = load.parallel
        parameters = native.llama_model_default_params()
        parameters.n_gpu_layers = 0
        parameters.use_mmap = not (relaid := is_relaid(load.model))
        self._model = native.llama_model_load_from_file(load.model.path.encode(), parameters)
        if relaid:
            leave(load.model)
        if not self._model:
            raise ModelUnloadable("llama.cpp refuses the file")
        if self._metadata(STORED_AS):  # a calibration of other numbers must not count
            self.name += f", weights as {self._form()}"
        self._adapter = LlamaCppAdapter(self._model, load.model.adapter) if load.model.adapter else None
        # The state of a recurrent model is one for all tokens: no beginning can be cut from it.
        shares = not (native.llama_model_is_recurrent(self._model) or native.llama_model_is_hybrid(self._model))
        self._scratch = self.slots  # a sequence beside the slots, empty between calls
        parameters = self._context_parameters(load, room_bytes)
        self._context = native.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise ModelUnloadable(
                f"no context of {parameters.n_ctx} tokens with a cache of {load.kv_type}: the model cannot use that type, "
                "or memory is short; see engine.kv_type, engine.context_tokens and engine.parallel"
            )
        if self._adapter:
            self._adapter.put_on(self._context)
        self._memory = native.llama_get_memory(self._context)
        self.state_format = f"{self.name}, keys and values {load.kv_type}, flash attention {parameters.flash_attn_type}"
        self._vocabulary = native.llama_model_get_vocab(self._model)
        self.vocabulary_size: int = native.llama_vocab_n_tokens(self._vocabulary)
        self.hidden_width: int = native.llama_model_n_embd(self._model)
        self.cells: int = native.llama_n_ctx(self._context)
        self.context_tokens: int = min(load.context_tokens, self.cells)
        self.saved_tokens = int(self.cells * SAVED_SHARE) if shares else 0
        self.drafted_tokens = DRAFTED_TOKENS if shares else 0
        self.batch_tokens: int = native.llama_n_batch(self._context)
        self._filled = [0] * self.slots
        self._batch = ChunkBatch(self.batch_tokens)
        self.step_threads = StepThreads(load.threads)  # may be exchanged between two steps
        self.piece = lru_cache(maxsize=65536)(self._piece)
        self.ends = lru_cache(maxsize=65536)(self._ends)
        self._row_at = lru_cache(maxsize=parameters.n_outputs_max)(self._view)
        self._scoring: LlamaCppScoring | None = None
        template = self._chat_template(load)
        self.thinking = template.thinking if template else None
        fim = (native.llama_vocab_fim_pre, native.llama_vocab_fim_suf, native.llama_vocab_fim_mid)
        before, after, gap = (mark(self._vocabulary) for mark in fim)
        gap_marks = (before, after, gap) if min(before, after, gap) >= 0 else None
        self.traits = self._traits(fills_gaps=gap_marks is not None)
        self._prompts = PromptTokens(
            lambda text, special: self._tokenize(text, special=special),
            template=template,
            control_texts=self._control_token_texts(),
            bos=native.llama_vocab_bos(self._vocabulary) if native.llama_vocab_get_add_bos(self._vocabulary) else None,
            gap_marks=gap_marks,
            vocabulary_size=self.vocabulary_size,
            context_tokens=self.context_tokens,
            shortage="" if self.context_tokens == load.context_tokens else ", all that the free memory holds",
        )
        self._warm_up()

    def _context_parameters(self, load: frames.Load, room_bytes: int) -> Any:
        parameters = native.llama_context_default_params()
        parameters.type_k = parameters.type_v = KV_TYPES[load.kv_type]
        # With each cell its part of the beginnings kept outside, and of a scoring context for one request.
        shares = self.cell_bytes(load.kv_type) * (1 + SAVED_SHARE) + self.cell_bytes(KvType.F16) / load.parallel
        parameters.n_ctx = cell_count(
            load.parallel * load.context_tokens,
            cell_bytes=math.ceil(shares),
            free_bytes=room_bytes,
            weight_bytes=native.llama_model_size(self._model),
        )
        parameters.n_batch = parameters.n_ubatch = max(BATCH_TOKENS, load.parallel)
        # llama.cpp aborts when there are fewer outputs than sequences.
        parameters.n_seq_max = self.slots + 1
        parameters.n_outputs_max = self.slots + 1 + DRAFTED_TOKENS
        # One pool of cells: a beginning can be shared without a copy, and prompts of unequal
        # lengths go through the model in one batch. The scheduler sees to it that it suffices.
        parameters.kv_unified = True
        parameters.no_perf = True
        return parameters

    def cell_bytes(self, kv_type: KvType) -> int:
        """Bytes of one token's keys and values in all layers."""
        heads: int = native.llama_model_n_head_kv(self._model)
        layers: int = native.llama_model_n_layer(self._model)
        architecture = self._metadata("general.architecture")
        usual = native.llama_model_n_embd(self._model) // max(1, native.llama_model_n_head(self._model))
        widths = (self._metadata(f"{architecture}.attention.{part}_length") for part in ("key", "value"))
        values = sum(int(width or usual) for width in widths) * heads * layers
        return max(1, math.ceil(values * BYTES_PER_VALUE[kv_type]))

    def _traits(self, *, fills_gaps: bool) -> ModelTraits:
        stored = self._metadata(STORED_AS)
        return ModelTraits(
            parameters=native.llama_model_n_params(self._model),
            quantization=stored or self._form(),
            held_as=self._form() if stored else "",
            fills_gaps=fills_gaps,
            thinks=self.thinking is not None,
        )

    def _form(self) -> str:
        buffer = ctypes.create_string_buffer(256)
        native.llama_model_desc(self._model, buffer, len(buffer))  # "llama 135M Q4_1", "qwen2 0.5B Q4_K - Medium"
        return buffer.value.decode("utf-8", "replace").split(" ", 2)[-1]

    def _metadata(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(256)
        count = native.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if count > 0 else ""

    def _chat_template(self, load: frames.Load) -> ChatTemplate | None:
        """Return the template; None for a model that only continues text."""
        source = load.model.chat_template
        if source is None:
            found = native.llama_model_chat_template(self._model, None)
            if found is None:
                return None
            source = found.decode("utf-8", "replace")
        bos, eos = native.llama_vocab_bos(self._vocabulary), native.llama_vocab_eos(self._vocabulary)
        try:
            return ChatTemplate(
                source,
                bos=self._special_text(bos) if bos >= 0 else "",
                eos=self._special_text(eos) if eos >= 0 else "",
                system_prompt=load.model.system_prompt,
                thinking=load.model.thinking,
            )
        except PromptRejected as error:
            raise ModelUnloadable(str(error)) from error

    def _control_token_texts(self) -> ControlTexts:
        control = (t for t in range(self.vocabulary_size) if native.llama_vocab_is_control(self._vocabulary, t))
        return ControlTexts(map(self._special_text, control))

    def _warm_up(self) -> None:
        # The first decode reads the weights from disk: better now than in the first answer.
        self.decode([Chunk(0, 0, [0], wants_row=True)])
        self.clear(0)

    def markup_tokens(self, text: str) -> list[int]:
        """Tokenize text of our own."""
        return self._tokenize(text, special=True)

    def written(self, token: int) -> bytes:
        """Return the bytes of a token, those of a control token as its name."""
        return self._text_bytes(token, special=True)

    def label_tokens(self, label: str) -> list[int]:
        """Tokenize the text of an answer."""
        return self._tokenize(label, special=False)

    @property
    def thread_choice(self) -> ThreadChoice:
        """The threads in use, and why."""
        return self.step_threads.choice

    def scoring(self, cells: int) -> LlamaCppScoring:
        """Return the scoring context, made when it is first needed and again when it must be larger."""
        if self._scoring is None or self._scoring.cells < cells + self._scoring.batch_tokens:
            if self._scoring is not None:
                self._scoring.close()
                self._scoring = None
            self._scoring = LlamaCppScoring(
                self._model,
                cells=cells,
                cell_bytes=self.cell_bytes(KvType.F16),
                threads=self.step_threads,
                adapter=self._adapter,
            )
        return self._scoring

    def _tokenize(self, text: str, *, special: bool) -> list[int]:
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        while True:
            buffer = (native.llama_token * room)()
            count = native.llama_tokenize(self._vocabulary, data, len(data), buffer, room, False, special)
            if count >= 0:
                return list(buffer[:count])
            if -count <= room:
                raise PromptRejected("the messages cannot be tokenized")
            room = -count  # what it takes; some vocabularies make several tokens of a byte

    def decode(self, chunks: Sequence[Chunk]) -> list[Row]:
        """Append the chunks and return the rows asked for."""
        check_chunks(self, self._filled, chunks)
        first = few_tokens(chunks) if sum(self._filled) > CELLS_TOGETHER else 0
        # The second call uses the memory of the first one's rows.
        rows = [row.copy() for row in self._decode(chunks[:first])] if first else []
        return rows + self._decode(chunks[first:])

    def _decode(self, chunks: Sequence[Chunk]) -> list[Row]:
        rows_at = self._batch.fill(chunks)
        tokens = sum(len(chunk.tokens) for chunk in chunks)
        kind = StepKind.DECODE if tokens == len(chunks) else StepKind.PREFILL
        threads = self.step_threads.begin(kind, tokens)
        # Which of the two numbers counts depends on the size of the batch; the choice does not.
        native.llama_set_n_threads(self._context, threads, threads)
        status = native.llama_decode(self._context, self._batch.native)
        if status != 0:
            raise RuntimeBroken(f"llama_decode returned {status}")
        self.step_threads.end()
        for chunk in chunks:
            self._filled[chunk.slot] += len(chunk.tokens)
        return [self._row(index) for index in rows_at]

    def decode_one_each(self, slots: Sequence[int], tokens: Sequence[int]) -> list[Row]:
        """Append one token to each slot and return the rows, in this order. As many threads as in the latest step."""
        positions = [self._filled[slot] for slot in slots]
        if max(positions) >= self.context_tokens or min(tokens) < 0 or max(tokens) >= self.vocabulary_size:
            raise ValueError("a slot is full, or a token is not in the vocabulary")
        self._batch.fill_one_each(slots, tokens, positions)
        began = time.monotonic()
        status = native.llama_decode(self._context, self._batch.native)
        if status != 0:
            raise RuntimeBroken(f"llama_decode returned {status}")
        self.step_threads.also(time.monotonic() - began)
        for slot in slots:
            self._filled[slot] += 1
        return [self._row(index) for index in range(len(slots))]

    def _row(self, index: int) -> Row:
        pointer = native.llama_get_logits_ith(self._context, index)
        if not pointer:
            raise RuntimeBroken(f"no logits for position {index} of the batch")
        row: Row = self._row_at(ctypes.addressof(pointer.contents))
        return row

    def _view(self, address: int) -> Row:
        # Made once for each of the few addresses at which llama.cpp keeps its rows.
        return np.ctypeslib.as_array((ctypes.c_float * self.vocabulary_size).from_address(address))

    def _ends(self, token: int) -> bool:
        return bool(native.llama_vocab_is_eog(self._vocabulary, token))

    def vocabulary(self) -> Vocabulary:
        """Return the tokens as a grammar needs them."""
        tokens = [
            b"\xff" + self._text_bytes(token, special=True)
            if native.llama_vocab_is_control(self._vocabulary, token)
            else self._text_bytes(token, special=False)
            for token in range(self.vocabulary_size)
        ]
        ends = [token for token in range(self.vocabulary_size) if self.ends(token)]
        return Vocabulary(tokens, ends, lambda text: self._tokenize(text.decode("utf-8", "replace"), special=False))

    def _piece(self, token: int) -> bytes:
        return self._text_bytes(token, special=False)

    def _special_text(self, token: int) -> str:
        return self._text_bytes(token, special=True).decode("utf-8", "replace")

    def _text_bytes(self, token: int, *, special: bool) -> bytes:
        for room in (64, 4096):
            buffer = ctypes.create_string_buffer(room)
            count = native.llama_token_to_piece(self._vocabulary, token, buffer, room, 0, special)
            if count >= 0:
                return buffer.raw[:count]
        raise RuntimeBroken(f"token {token} has a piece of {-count} bytes")

    def close(self) -> None:
        """Free the contexts, then the model."""
        if self._scoring is not None:
            self._scoring.close()
        native.llama_free(self._context)
        native.llama_model_free(self._model)
