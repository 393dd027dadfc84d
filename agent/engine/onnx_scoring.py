"""The scoring context of an ONNX decoder: a tree of continuations over one prompt.

Attention rounds one way for a single token and another way for several, and what is rounded to
8 bits after it makes a difference of up to 0.7 nats of that. So tokens of the prompt always come
several together, and those of branches one each of some rows. Then a row of logits depends on the
tokens before it alone, to the last bit, as long as the kernels of the processor give a row the
same whatever its batch. On x86-64 with AVX2 they do; where they do not, each run has one
fixed size.

Every row of keys and values holds the prompt; what belongs to a branch is put behind it when it
is needed, and kept aside meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from agent import device
from agent.engine.key_values import Values
from agent.engine.kv_cache import scoring_cell_count
from agent.engine.onnx_decoder import OnnxDecoder
from agent.engine.runtime import MOST_BRANCHES, Node, Row, RuntimeBroken, grown

SEVERAL = 2  # tokens of the prompt in a run, at least
PROMPT_TOKENS = 16  # in a run of fixed size
BATCH_TOKENS = 64


class _Ended(NamedTuple):
    """A token of a branch that was computed."""

    before: _Ended | None  # None: the prompt
    values: Values


class OnnxScoring:
    """Implements ScoringContext. Used by one thread."""

    batch_tokens = BATCH_TOKENS
    branches = MOST_BRANCHES

    def __init__(self, decoder: OnnxDecoder, *, cells: int, rows: int, fixed: bool | None = None) -> None:
        """Make a context of at least ``cells`` tokens, with ``rows`` branches in a run.

        ``fixed``: whether every run has the same size; None: as this processor needs it. Raises
        ModelUnloadable when memory is short.
        """
        free_bytes = device.profile().memory_usable
        self.cells = scoring_cell_count(
            cells + BATCH_TOKENS, cell_bytes=rows * decoder.cell_bytes, free_bytes=free_bytes
        )
        self._decoder = decoder
        self._rows = rows
        self._values = decoder.key_values(rows=rows, tokens=self.cells + PROMPT_TOKENS)
        self.fixed = not self._sizes_agree() if fixed is None else fixed
        self.step_tokens = rows if self.fixed else 1
        self._shared = 0  # tokens of the prompt
        self._copied = [0] * rows  # tokens of the prompt that each row has; the first has all
        self._used = 0
        self._hidden: Row | None = None
        self._tips: dict[int, tuple[int, _Ended]] = {}  # of branches that have tokens of their own: length, last

    def _sizes_agree(self) -> bool:
        """Whether the rows of logits are the same to the last bit in runs of several sizes."""
        run, values = self._decoder.run, self._values
        tokens = [(7 + 31 * at) % self._decoder.vocabulary_size for at in range(PROMPT_TOKENS)]
        (whole,) = run(values, 0, [tokens], [PROMPT_TOKENS], chosen=(PROMPT_TOKENS - 1,))
        for start, end in ((0, 5), (5, 13)):
            run(values, 0, [tokens[start:end]], [end])
        (pieces,) = run(values, 0, [tokens[13:]], [PROMPT_TOKENS], chosen=(2,))
        for row in range(1, self._rows):
            values.copy(0, row, 0, PROMPT_TOKENS)
        (alone,) = run(values, 0, [tokens[:1]], [PROMPT_TOKENS + 1], chosen=(0,))
        beside = run(values, 0, [tokens[:1]] * self._rows, [PROMPT_TOKENS + 1] * self._rows, chosen=(0,))[-1]
        return np.array_equal(whole, pieces) and np.array_equal(alone, beside)

    def decode(self, nodes: Sequence[Node], *, hidden: bool = False) -> list[Row]:
        """Append nodes and return the rows asked for."""
        self._check(nodes)
        self._hidden = None
        shared = sum(node.branches is None for node in nodes)
        rows: dict[int, Row] = {}
        step = PROMPT_TOKENS if self.fixed else BATCH_TOKENS
        for begin in range(0, shared, step):
            rows |= self._prompt(nodes[begin : min(begin + step, shared)], begin, hidden=hidden)
        rows |= self._branches(list(enumerate(nodes))[shared:])
        self._used += len(nodes)
        return [rows[at] for at, node in enumerate(nodes) if node.wants_row]

    def _check(self, nodes: Sequence[Node]) -> None:
        if not 0 < len(nodes) <= BATCH_TOKENS:
            raise ValueError(f"{len(nodes)} nodes in a batch of {BATCH_TOKENS}")
        if self._used + len(nodes) > self.cells:
            raise ValueError(f"the scoring context of {self.cells} tokens is full")
        lengths = {branch: length for branch, (length, _) in self._tips.items()}
        grown(nodes, self._shared, lengths, self._decoder.vocabulary_size)

    def hidden(self) -> Row:
        """Return the hidden state at the first node of the prompt that wanted a row."""
        if self._hidden is None:
            raise RuntimeBroken("the last decode kept no hidden state")
        return self._hidden

    def _prompt(self, nodes: Sequence[Node], begin: int, *, hidden: bool) -> dict[int, Row]:
        """Compute tokens of the prompt in the first row."""
        size = PROMPT_TOKENS if self.fixed else max(SEVERAL, len(nodes))
        filled = [*(node.token for node in nodes), *[0] * (size - len(nodes))]
        chosen = [at for at, node in enumerate(nodes) if node.wants_row]
        logits = self._decoder.run(self._values, 0, [filled], [self._shared + size], chosen=chosen, hidden=hidden)
        if hidden and chosen and self._hidden is None:
            self._hidden = self._decoder.hidden[0, 0]
        self._shared += len(nodes)
        return {begin + at: row for at, row in zip(chosen, logits[0], strict=True)}

    def _branches(self, nodes: list[tuple[int, Node]]) -> dict[int, Row]:
        """Compute tokens of branches, in each run those whose tokens before them are known."""
        rows: dict[int, Row] = {}
        while nodes:
            taken: set[int] = set()
            ready: list[tuple[int, Node]] = []
            for at, node in nodes:
                branches = set(node.branches or ())
                if len(ready) < self._rows and not branches & taken:
                    ready.append((at, node))
                taken |= branches
            chosen = {at for at, _ in ready}
            nodes = [(at, node) for at, node in nodes if at not in chosen]
            rows |= self._step(ready)
        return rows

    def _step(self, ready: list[tuple[int, Node]]) -> dict[int, Row]:
        for row in range(1, self._rows if self.fixed else len(ready)):
            if self._copied[row] < self._shared:
                self._values.copy(0, row, self._copied[row], self._shared)
                self._copied[row] = self._shared
        before: list[_Ended | None] = []
        for row, (_, node) in enumerate(ready):
            branch = (node.branches or (0,))[0]
            before.append(self._tips[branch][1] if branch in self._tips else None)
            self._put(row, before[-1], node.position)
        spare = self._rows - len(ready) if self.fixed else 0
        tokens = [*([node.token] for _, node in ready), *[[0]] * spare]
        ends = [*(node.position + 1 for _, node in ready), *[self._shared + 1] * spare]
        logits = self._decoder.run(self._values, 0, tokens, ends, chosen=(0,))
        for row, (_, node) in enumerate(ready):
            values = self._values.read(row, node.position, node.position + 1).copy()
            for branch in node.branches or ():
                self._tips[branch] = (node.position + 1, _Ended(before[row], values))
        return {at: logits[row, 0] for row, (at, node) in enumerate(ready) if node.wants_row}

    def _put(self, row: int, last: _Ended | None, end: int) -> None:
        """Put the tokens of a branch behind the prompt of a row."""
        while last is not None:
            end -= 1
            self._values.read(row, end, end + 1)[:] = last.values
            last = last.before

    def keep(self, tokens: int) -> None:
        """Forget everything after the first tokens of the shared prompt."""
        if not 0 <= tokens <= self._shared:
            raise ValueError(f"cannot keep {tokens} of {self._shared} tokens")
        self._shared = self._used = tokens
        self._copied = [min(copied, tokens) for copied in self._copied]
        self._tips = {}

    def close(self) -> None:
        """Free the rows."""
        self._decoder.release(self._values)
        del self._values
