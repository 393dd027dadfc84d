"""One kept copy of each common beginning of prompts, shared by all who begin with it.

A tree of runs of tokens. Running requests that begin alike share the cells of the context,
without a copy. What nobody uses at the moment is kept outside of the context, since a step
has to look at every cell that is taken, and comes back in about a hundredth of the time that
computing it takes. When the tree is full, leaves go, the least recently used one first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from agent.engine.runtime import Saved

# A shorter beginning costs more in book-keeping than it saves.
SHORTEST_TOKENS = 32


class Memory(Protocol):
    """What of a runtime the cache uses; see ``agent.engine.runtime``."""

    saved_tokens: int

    def share(self, source: int, target: int, start: int, end: int) -> None: ...
    def save(self, slot: int, start: int, end: int) -> Saved: ...
    def restore(self, saved: Saved, slot: int, end: int) -> bool: ...
    def divide(self, saved: Saved, at: int) -> tuple[Saved, Saved] | None: ...


class Run:
    """Tokens of a kept beginning; what comes before them is in the parents."""

    def __init__(self, tokens: list[int], saved: Saved, parent: Run | None) -> None:
        self.tokens = tokens
        self.saved = saved
        self.parent = parent
        self.children: dict[int, Run] = {}
        self.slots: set[int] = set()  # those that hold all tokens up to the last of this run
        self.used = 0  # moment of the last use, on the cache's own count

    @property
    def start(self) -> int:
        return self.saved.start

    @property
    def end(self) -> int:
        return self.saved.end


class PrefixCache:
    """The tree. Used by one thread, beside the scheduler that owns the slots."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._root = Run([], Saved(0, 0, b""), None)
        self._standing: dict[int, Run] = {}  # the deepest run that a slot holds
        self._moment = 0
        self.tokens = 0  # that are kept

    def reach(self, tokens: list[int]) -> int:
        """Return how many of these tokens ``enter`` would find. Changes nothing."""
        return self._find(tokens)[1]

    def enter(self, slot: int, tokens: list[int]) -> int:
        """Give an empty slot the longest kept beginning of these tokens; return its length, or 0."""
        last, reached = self._find(tokens)
        if reached < SHORTEST_TOKENS:
            return 0
        held = 0
        for run in _path(last):
            end = min(run.end, reached)
            if run.slots:
                self._memory.share(next(iter(run.slots)), slot, held, end)
            elif not self._memory.restore(run.saved, slot, end):
                break  # the context is full for the moment
            held = end
            if held == run.end:
                self._stand(slot, run)
        return held

    def store(self, slot: int, tokens: list[int]) -> None:
        """Keep the tokens that a slot holds, all of them."""
        if len(tokens) < SHORTEST_TOKENS or len(tokens) > self._memory.saved_tokens:
            return
        run, reached = self._find(tokens)
        if reached < run.end:
            first = self._divide(run, reached)
            if first is None:
                return
            run = first
        if reached < len(tokens):
            leaf = Run(tokens[reached:], self._memory.save(slot, reached, len(tokens)), run)
            run.children[leaf.tokens[0]] = leaf
            self.tokens += len(leaf.tokens)
            run = leaf
        for held in _path(run):
            self._stand(slot, held)
        self.shrink(self._memory.saved_tokens)

    def leave(self, slot: int) -> None:
        """Say that a slot is about to be cleared."""
        for run in _path(self._standing.pop(slot, self._root)):
            run.slots.discard(slot)
        # What was in use could not be dropped when there was too much.
        self.shrink(self._memory.saved_tokens)

    def shrink(self, tokens: int) -> None:
        """Drop leaves until at most ``tokens`` are kept, or all that is left is in use."""
        while self.tokens > tokens:
            leaf = min((run for run in self._leaves(self._root) if not run.slots), key=_last_use, default=None)
            if leaf is None or leaf.parent is None:
                return
            del leaf.parent.children[leaf.tokens[0]]
            self.tokens -= len(leaf.tokens)

    def _find(self, tokens: list[int]) -> tuple[Run, int]:
        """Return the deepest run on the way along ``tokens``, and how many tokens agree in all."""
        run, reached = self._root, 0
        while reached == run.end and reached < len(tokens):
            child = run.children.get(tokens[reached])
            if child is None:
                break
            run, reached = child, reached + agreeing(child.tokens, tokens, reached)
        return run, reached

    def _divide(self, run: Run, at: int) -> Run | None:
        """Cut a run in two, so that another may begin inside; return the first part."""
        saved = self._memory.divide(run.saved, at)
        if saved is None or run.parent is None:
            return None
        inside = at - run.start
        first = Run(run.tokens[:inside], saved[0], run.parent)
        first.slots, first.used = set(run.slots), run.used
        run.parent.children[first.tokens[0]] = first
        run.tokens, run.saved, run.parent = run.tokens[inside:], saved[1], first
        first.children[run.tokens[0]] = run
        return first

    def _stand(self, slot: int, run: Run) -> None:
        self._moment += 1
        run.slots.add(slot)
        run.used = self._moment
        self._standing[slot] = run

    def _leaves(self, run: Run) -> Iterator[Run]:
        unseen = list(run.children.values())
        while unseen:
            run = unseen.pop()
            unseen += run.children.values()
            if not run.children:
                yield run


def agreeing(run: list[int], tokens: list[int], start: int) -> int:
    """Count how many tokens of a run are also at ``start`` of ``tokens``."""
    most = min(len(run), len(tokens) - start)
    if run[:most] == tokens[start : start + most]:
        return most
    return next(index for index in range(most) if run[index] != tokens[start + index])


def _path(run: Run) -> list[Run]:
    """Return the runs from the first token to this one."""
    path = []
    above: Run | None = run
    while above is not None and above.parent is not None:
        path.append(above)
        above = above.parent
    return path[::-1]


def _last_use(run: Run) -> int:
    return run.used
