"""The seam to native inference: what the scheduler asks of a runtime.

A runtime holds one loaded model and a fixed number of slots, each with the tokens of one request.
Tokens that slots share take their room once. It is used by one thread. ``tests/conformance`` is what every entry of RUNTIMES passes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from agent.engine.grammar import Vocabulary
from agent.engine.refusals import ModelUnloadable, PromptRejected, PromptTooLong, RuntimeBroken
from agent.engine.worker_status import ModelTraits, ThreadChoice
from agent.structure import Tools
from agent.types import Message, ModelFormat, Prompt, ThinkingMarks

if TYPE_CHECKING:
    from agent.engine.frames import Load

__all__ = ["ModelUnloadable", "PromptRejected", "PromptTooLong", "RuntimeBroken"]  # what all of them raise

RUNTIMES = {
    "llama.cpp": "agent.engine.llama_cpp_runtime:LlamaCppRuntime",
    "onnxruntime": "agent.engine.onnx_generation_runtime:OnnxGenerationRuntime",
}
_ANSWERS = frozenset({ModelFormat.GGUF, ModelFormat.ONNX_GENERATION})

Row = NDArray[np.float32]  # logits, one per token of the vocabulary, before any sampler


def runtime_of(form: ModelFormat) -> Callable[[Load], Runtime]:
    """Return what loads models of a format. Raises ModelUnloadable where nothing does."""
    if form not in _ANSWERS:
        raise ModelUnloadable(f"no runtime answers with files of the format {form}")
    module, _, name = RUNTIMES[form.runtime].partition(":")
    found: Callable[[Load], Runtime] = getattr(importlib.import_module(module), name)
    return found


MOST_BRANCHES = 127  # of a scoring context


class Chunk(NamedTuple):
    """Tokens to append to one slot in one step."""

    slot: int
    start: int  # position of the first token: exactly the number of tokens already there
    tokens: Sequence[int]
    wants_row: bool  # whether the logits after the last token are needed
    drafted: int = 0  # of the last tokens, that are a guess: then a row is given before each of them, too


class Saved(NamedTuple):
    """What was computed for some tokens of a slot; only the runtime that made it can read it."""

    start: int  # position of the first token
    end: int  # position after the last
    data: Any


class Node(NamedTuple):
    """One token of a scoring context: of the prompt all branches share, or of some branches."""

    token: int
    position: int
    branches: Sequence[int] | None  # None: all of them; only while no branch has tokens of its own
    wants_row: bool


class ScoringContext(Protocol):
    """A context of its own in which a row depends on the tokens before it and on nothing else.

    Neither what ran before nor what is decoded beside it changes it by more than 0.01 nats.
    A tree of continuations of one prompt shares its tokens.
    """

    cells: int  # most tokens, those of all branches together
    batch_tokens: int  # most nodes in one decode
    step_tokens: int  # a decode costs as much as one of the next multiple of this
    branches: int

    def decode(self, nodes: Sequence[Node], *, hidden: bool = False) -> list[Row]:
        """Append nodes, parents first, and return a row for each that wants one.

        ``hidden`` keeps what ``hidden`` returns; it changes no row. The rows hold until the next decode. Raises ValueError, with nothing changed, for
        nodes that break the rules, and RuntimeBroken when the native layer fails.
        """
        ...

    def hidden(self) -> Row:
        """Return the model's last hidden state at the first node that wanted a row in the last decode with ``hidden``."""
        ...

    def keep(self, tokens: int) -> None:
        """Forget everything after the first tokens of the shared prompt."""
        ...


class Runtime(Protocol):
    """One loaded model."""

    name: str  # with version
    slots: int
    context_tokens: int  # of one slot
    cells: int  # tokens that all slots hold together, shared ones counted once
    saved_tokens: int  # most tokens to keep outside of the slots; 0 where the model cannot share a beginning
    batch_tokens: int  # most tokens in one decode
    drafted_tokens: int  # most drafted ones in one decode; 0 where a slot cannot be cut
    vocabulary_size: int  # length of a row
    hidden_width: int  # length of a hidden state; 0 where the runtime gives none
    thinking: ThinkingMarks | None  # of a model that thinks before it answers
    state_format: str  # what one life of a model has packed, another of the same format may unpack
    traits: ModelTraits

    @property
    def thread_choice(self) -> ThreadChoice:
        """The threads in use, and why."""
        ...

    def prompt_tokens(
        self, messages: Sequence[Message], tools: Tools | None = None, *, thinking: bool = False
    ) -> list[int]:
        """Render the chat template and tokenize. Raises PromptRejected or PromptTooLong.

        Without ``thinking`` the answer follows at once: thoughts that the template opens are closed.
        """
        ...

    def markup_tokens(self, text: str) -> list[int]:
        """Tokenize text of our own; control tokens are read out of it."""
        ...

    def written(self, token: int) -> bytes:
        """Return the bytes of a token, those of a control token as its name."""
        ...

    def text_tokens(self, prompt: Prompt) -> list[int]:
        """Tokenize a prompt that is no chat, or check one that is tokens already.

        Raises PromptRejected or PromptTooLong.
        """
        ...

    def gap_tokens(self, prompt: Prompt, suffix: str) -> list[int]:
        """Return the prompt that has the model write what belongs between these two texts.

        Raises PromptRejected, also for a model that cannot, or PromptTooLong.
        """
        ...

    def label_tokens(self, label: str) -> list[int]:
        """Tokenize the text of an answer; control tokens are not read out of it."""
        ...

    def scoring(self, cells: int) -> ScoringContext:
        """Return the scoring context, at least this large; an earlier, smaller one is freed."""
        ...

    def vocabulary(self) -> Vocabulary:
        """Return the tokens as a grammar needs them. May be called from another thread."""
        ...

    def decode(self, chunks: Sequence[Chunk]) -> list[Row]:
        """Append the chunks (at most one a slot) and return a row for each that wants one.

        A chunk with drafted tokens gives one more for each of them, in the order of their
        positions, beginning with the row after its last token that is no guess. The rows keep the order of the chunks and hold until the next decode. Raises
        ValueError, with nothing changed, for chunks that break the rules of Chunk or the
        limits above (other than ``cells``), and RuntimeBroken when the native layer fails.
        """
        ...

    def decode_one_each(self, slots: Sequence[int], tokens: Sequence[int]) -> list[Row]:
        """Append one token to each of some slots and return a row for each, in this order; right after a ``decode``.

        What ``decode`` would do with such chunks, with less ado. The rows hold until the next decode.
        Raises as ``decode``.
        """
        ...

    def share(self, source: int, target: int, start: int, end: int) -> None:
        """Append the tokens ``start`` to ``end`` of one slot to another, which holds ``start``.

        Nothing is computed and no room is taken. Raises ValueError, with nothing changed, for
        what the slots do not hold.
        """
        ...

    def save(self, slot: int, start: int, end: int) -> Saved:
        """Copy what was computed for these tokens of a slot. Raises ValueError as above."""
        ...

    def restore(self, saved: Saved, slot: int, end: int) -> bool:
        """Append saved tokens up to ``end`` to a slot, which holds ``saved.start``.

        False, with nothing changed: there is no room at the moment. Raises ValueError as above.
        """
        ...

    def divide(self, saved: Saved, at: int) -> tuple[Saved, Saved] | None:
        """Cut what was saved in two at a position inside; None: no room to do that at the moment."""
        ...

    def pack(self, saved: Saved) -> memoryview:
        """Return what was saved as bytes, for a later life of the same model."""
        ...

    def unpack(self, start: int, end: int, data: memoryview) -> Saved:
        """Return what ``pack`` was given, of tokens ``start`` to ``end``.

        Raises ValueError, with nothing changed, when these bytes are not that, or when there
        is no room to make sure at the moment. The bytes are not copied.
        """
        ...

    def cut(self, slot: int, tokens: int) -> None:
        """Forget all but the first tokens of a slot; what others share with it stays theirs.

        Raises ValueError, with nothing changed, when the slot does not hold as many, or for none of them: that is ``clear``.
        """
        ...

    def clear(self, slot: int) -> None:
        """Forget all tokens of a slot; what others share with it stays theirs."""
        ...

    def piece(self, token: int) -> bytes:
        """Return the bytes of a token; empty for a control token."""
        ...

    def ends(self, token: int) -> bool:
        """Return whether this token ends an answer."""
        ...

    def close(self) -> None:
        """Free the model; nothing may be called afterwards."""
        ...


def check_chunks(runtime: Runtime, filled: Sequence[int], chunks: Sequence[Chunk]) -> None:
    """Raise ValueError for chunks that ``decode`` must not be given; ``filled``: how many tokens each slot holds."""
    total = drafted_tokens = 0
    slots = set()
    for slot, start, tokens, wants_row, drafted in chunks:
        total += len(tokens)
        drafted_tokens += drafted
        slots.add(slot)
        if not 0 <= slot < runtime.slots:
            raise ValueError(f"slot {slot} of {runtime.slots}")
        if not tokens or start != filled[slot]:
            raise ValueError(f"slot {slot} holds {filled[slot]} tokens, the chunk starts at {start}")
        if start + len(tokens) > runtime.context_tokens:
            raise ValueError(f"slot {slot} would hold more than {runtime.context_tokens} tokens")
        if min(tokens) < 0 or max(tokens) >= runtime.vocabulary_size:
            raise ValueError("a token is not in the vocabulary")
        if drafted and not (wants_row and 0 < drafted < len(tokens)):
            raise ValueError(f"{drafted} drafted tokens in a chunk of {len(tokens)}")
    if not 0 < total <= runtime.batch_tokens:
        raise ValueError(f"{total} tokens in a batch of {runtime.batch_tokens}")
    if len(slots) != len(chunks):
        raise ValueError("two chunks for one slot")
    if drafted_tokens > runtime.drafted_tokens:
        raise ValueError(f"{drafted_tokens} drafted tokens, {runtime.drafted_tokens} have a row")


def grown(
    nodes: Sequence[Node], shared: int, lengths: Mapping[int, int], vocabulary: int
) -> tuple[int, dict[int, int]]:
    """Return how far a tree reaches once these nodes are in it: tokens of the prompt, and the length of each branch.

    ``shared`` and ``lengths`` are the same before, without the branches that have no token of their own. Raises
    ValueError for nodes that break the rules of Node.
    """
    known = dict(lengths)
    for token, position, branches, _ in nodes:
        if not 0 <= token < vocabulary:
            raise ValueError("a token is not in the vocabulary")
        if branches is None:
            if known or position != shared:
                raise ValueError(f"a shared token at {position}, the prompt has {shared}")
            shared += 1
            continue
        if not branches or len(set(branches)) != len(branches):
            raise ValueError("a node needs branches, each of them once")
        for branch in branches:
            if not 0 <= branch < MOST_BRANCHES or known.get(branch, shared) != position:
                raise ValueError(f"branch {branch} does not go on at {position}")
            known[branch] = position + 1
    return shared, known
