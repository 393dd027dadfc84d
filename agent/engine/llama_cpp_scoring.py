"""llama.cpp's scoring context: a tree of continuations over one prompt, in small batches.

A row must not depend on what is decoded beside it. Flash attention goes through the cells one
by one and skips those that a token does not see, but only in batches below 64 tokens: from
there on it works in tiles, and without flash attention the sums run over all cells (the labels
that share a batch then change each other by up to 0.2 nats). The matrix kernels take some
tokens at a time and the rest of a batch in another way, so batches are filled up to a multiple
of 8. Measured so on SmolLM2 as Q4_1, Q4_0, Q8_0 and Q4_K_M: every row is the same to the last
bit in batches of 8 to 56 tokens, with one thread and with two; as F16 within 0.0003 nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llama_cpp.llama_cpp as native
import numpy as np

from agent import device
from agent.engine.kv_cache import scoring_cell_count
from agent.engine.llama_cpp_adapter import LlamaCppAdapter
from agent.engine.llama_cpp_batch import NativeBatch
from agent.engine.runtime import MOST_BRANCHES, ModelUnloadable, Node, Row, RuntimeBroken, grown
from agent.engine.threads import StepKind, StepThreads

BATCH_TOKENS = 56  # the most below the tiles of flash attention
STEP_TOKENS = 8  # batches are filled up to a multiple of this
PADDING = MOST_BRANCHES  # the branch of tokens that only fill a batch up
BRANCHES = MOST_BRANCHES + 1


class LlamaCppScoring:
    """Implements ScoringContext. Used by one thread."""

    batch_tokens = BATCH_TOKENS
    step_tokens = STEP_TOKENS
    branches = MOST_BRANCHES

    def __init__(
        self, model: Any, *, cells: int, cell_bytes: int, threads: StepThreads, adapter: LlamaCppAdapter | None = None
    ) -> None:
        """Make a context of at least ``cells`` tokens. Raises ModelUnloadable when memory is short."""
        free_bytes = device.profile().memory_usable
        self.cells = scoring_cell_count(cells + BATCH_TOKENS, cell_bytes=cell_bytes, free_bytes=free_bytes)
        self._threads = threads
        parameters = native.llama_context_default_params()
        parameters.n_ctx = self.cells
        parameters.n_batch = parameters.n_ubatch = BATCH_TOKENS
        parameters.n_seq_max = parameters.n_outputs_max = BRANCHES
        parameters.kv_unified = True  # the branches share the cells of their prompt
        parameters.pooling_type = native.LLAMA_POOLING_TYPE_NONE  # a hidden state is that of one token
        parameters.flash_attn_type = native.LLAMA_FLASH_ATTN_TYPE_ENABLED
        parameters.no_perf = True
        self._context = native.llama_init_from_model(model, parameters)
        if not self._context:
            raise ModelUnloadable(f"no scoring context of {self.cells} tokens: memory is short")
        if adapter:
            adapter.put_on(self._context)
        self._memory = native.llama_get_memory(self._context)
        self._vocabulary_size: int = native.llama_vocab_n_tokens(native.llama_model_get_vocab(model))
        self._hidden_width: int = native.llama_model_n_embd(model)
        self._hidden_at = 0
        self._batch = _TreeBatch(BATCH_TOKENS, BRANCHES)
        self._shared = 0  # tokens of the prompt
        self._lengths: dict[int, int] = {}  # of branches that have tokens of their own
        self._used = 0

    def decode(self, nodes: Sequence[Node], *, hidden: bool = False) -> list[Row]:
        """Append nodes and return the rows asked for, in one native call."""
        shared, lengths = self._check(nodes)
        rows_at = self._batch.fill(nodes, pad_from=shared)
        self._hidden_at = rows_at[0] if hidden and rows_at else -1
        # With it every token of a batch gets a row: a fifth more work where there are few labels.
        native.llama_set_embeddings(self._context, hidden)
        threads = self._threads.begin(StepKind.SCORE, len(nodes))
        native.llama_set_n_threads(self._context, threads, threads)
        status = native.llama_decode(self._context, self._batch.native)
        if status != 0:
            raise RuntimeBroken(f"llama_decode returned {status} while scoring")
        self._threads.end()
        if len(nodes) % STEP_TOKENS:
            native.llama_memory_seq_rm(self._memory, PADDING, shared, -1)
        self._shared, self._lengths = shared, lengths
        self._used += len(nodes)
        return [self._row(index) for index in rows_at]

    def _check(self, nodes: Sequence[Node]) -> tuple[int, dict[int, int]]:
        if not 0 < len(nodes) <= BATCH_TOKENS:
            raise ValueError(f"{len(nodes)} nodes in a batch of {BATCH_TOKENS}")
        if self._used + BATCH_TOKENS > self.cells:
            raise ValueError(f"the scoring context of {self.cells} tokens is full")
        return grown(nodes, self._shared, self._lengths, self._vocabulary_size)

    def hidden(self) -> Row:
        """Return the hidden state at the first node that wanted a row."""
        pointer = native.llama_get_embeddings_ith(self._context, self._hidden_at) if self._hidden_at >= 0 else None
        if not pointer:
            raise RuntimeBroken("the last decode kept no hidden state")
        return np.ctypeslib.as_array(pointer, shape=(self._hidden_width,))

    def keep(self, tokens: int) -> None:
        """Forget everything after the first tokens of the shared prompt."""
        if not 0 <= tokens <= self._shared:
            raise ValueError(f"cannot keep {tokens} of {self._shared} tokens")
        native.llama_memory_seq_rm(self._memory, -1, tokens, -1)
        self._shared = self._used = tokens
        self._lengths = {}

    def _row(self, index: int) -> Row:
        pointer = native.llama_get_logits_ith(self._context, index)
        if not pointer:
            raise RuntimeBroken(f"no logits for position {index} of the batch")
        return np.ctypeslib.as_array(pointer, shape=(self._vocabulary_size,))

    def close(self) -> None:
        """Free the context."""
        native.llama_free(self._context)


class _TreeBatch(NativeBatch):
    """A multiple of STEP_TOKENS tokens, each with the branches that it belongs to."""

    def fill(self, nodes: Sequence[Node], *, pad_from: int) -> list[int]:
        """Lay out the nodes; return the indices whose rows are wanted. Padding goes on at ``pad_from``."""
        for index, (token, position, branches, wants_row) in enumerate(nodes):
            own = range(BRANCHES) if branches is None else branches
            self.token[index], self.pos[index] = token, position
            self.sequence_count[index], self.wanted[index] = len(own), wants_row
            self.sequences[index, : len(own)] = own
        size = len(nodes)
        padding = -size % STEP_TOKENS
        end = size + padding
        self.token[size:end] = 0
        self.pos[size:end] = np.arange(pad_from, pad_from + padding)
        self.sequence_count[size:end] = 1
        self.sequences[size:end, 0] = PADDING
        self.wanted[size:end] = 0
        self.native.n_tokens = end
        return [index for index, node in enumerate(nodes) if node.wants_row]
