"""What the engine answers when it is asked how likely given labels are, or for the vector of a text."""

from __future__ import annotations

import msgspec

from agent.types import Failure


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine says of some labels, in their order, before anything is corrected."""

    logprobs: tuple[float | None, ...] = ()  # nats; None where only the best was asked for
    token_counts: tuple[int, ...] = ()
    mass: float | None = None  # probability that an answer begins with any of the labels
    best: int | None = None
    hidden: bytes = b""  # float32: the last hidden state at the end of the prompt, where it was asked for and is given
    trained: bool = False  # for these very labels: what it says is a distribution already
    prompt_tokens: int = 0
    cached_tokens: int = 0
    duration_ms: float = 0.0
    model: str = ""
    model_digest: str = ""
    runtime: str = ""
    failure: Failure | None = None


class Vectors(msgspec.Struct, frozen=True, kw_only=True):
    """What an encoder makes of some texts, in their order."""

    vectors: tuple[tuple[float, ...], ...] = ()  # one a text, each of length 1
    prompt_tokens: int = 0
    duration_ms: float = 0.0
    model: str = ""
    model_digest: str = ""
    runtime: str = ""
    failure: Failure | None = None
