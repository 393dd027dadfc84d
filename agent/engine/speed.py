"""What ``outrider tune`` and its child say to each other: one JSON value a line.

The child (``<executable> engine-speed``) takes a ``frames.Load``, answers ``Loaded``, then runs
one stretch of steps for each ``Stretch`` and answers ``Ran``. Anything that goes wrong is a
``Refused``, and the end of the child.
"""

from __future__ import annotations

import msgspec

from agent.engine.worker_status import ThreadChoice


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="loaded"):
    """The model is in memory."""

    runtime: str
    most_threads: int  # that the adaptive choice would use
    cell_bytes: int  # of one token's keys and values
    kv_tokens: int


class Refused(msgspec.Struct, frozen=True, tag_field="type", tag="refused"):
    """It cannot be done."""

    message: str


class Stretch(msgspec.Struct, frozen=True, kw_only=True):
    """Run steps of one kind for a while."""

    kind: str  # a StepKind: decode or prefill
    threads: int  # 0: the adaptive choice, which remembers what it learned in earlier stretches
    seconds: float


class Ran(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="ran"):
    """What came of a stretch."""

    tokens: int
    seconds: float
    changes: tuple[tuple[float, int], ...]  # (begin of a step, its threads), where the number changed; monotonic clock
    choice: ThreadChoice

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


Answer = Loaded | Refused | Ran
