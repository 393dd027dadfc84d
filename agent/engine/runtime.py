"""The seam to native inference: what the scheduler asks of a runtime.

A runtime holds one loaded model with a fixed number of slots, each with its own context.
It is used by one thread. ``tests/conformance`` is what every entry of RUNTIMES passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from agent.engine.grammar import Vocabulary
from agent.structure import Tools
from agent.types import Message

RUNTIMES = {"llama.cpp": "agent.engine.llama_cpp_runtime:LlamaCppRuntime"}

Row = NDArray[np.float32]  # logits, one per token of the vocabulary, before any sampler


class PromptRejected(Exception):
    """The messages cannot be turned into a prompt. ``str()`` never holds their text."""


class PromptTooLong(Exception):
    """The prompt has more tokens than a context holds. ``str()`` gives the numbers."""


class ModelUnloadable(Exception):
    """The file cannot be loaded; trying again will not help."""


class RuntimeBroken(Exception):
    """The native layer is in a state that cannot be trusted: the worker must end."""


class Chunk(NamedTuple):
    """Tokens to append to one slot in one step."""

    slot: int
    start: int  # position of the first token: exactly the number of tokens already there
    tokens: Sequence[int]
    wants_row: bool  # whether the logits after the last token are needed


class Runtime(Protocol):
    """One loaded model."""

    name: str  # with version
    slots: int
    context_tokens: int  # of one slot
    batch_tokens: int  # most tokens in one decode
    vocabulary_size: int  # length of a row

    def prompt_tokens(self, messages: Sequence[Message], tools: Tools | None = None) -> list[int]:
        """Render the chat template and tokenize. Raises PromptRejected or PromptTooLong."""
        ...

    def vocabulary(self) -> Vocabulary:
        """Return the tokens as a grammar needs them. May be called from another thread."""
        ...

    def decode(self, chunks: Sequence[Chunk]) -> list[Row]:
        """Append the chunks (at most one a slot) and return a row for each that wants one.

        The rows keep the order of the chunks and hold until the next decode. Raises
        ValueError, with nothing changed, for chunks that break the rules of Chunk or the
        limits above, and RuntimeBroken when the native layer fails.
        """
        ...

    def clear(self, slot: int) -> None:
        """Forget all tokens of a slot."""
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
