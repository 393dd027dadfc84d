"""One cached copy of each common beginning of prompts, shared by all who begin with it.

A tree of runs of tokens. Each run has a sequence of the runtime that holds all tokens from
the first to the run's last; what two sequences share, the runtime keeps once. So the cells
that the tree takes are the sum over its runs, and dropping a leaf gives back its own cells.
Runs that somebody stands on stay; the others go leaf by leaf, least recently used first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

# A shorter beginning costs more in book-keeping than it saves.
SHORTEST_TOKENS = 32


class Memory(Protocol):
    """What of a runtime the cache uses; see ``agent.engine.runtime``."""

    slots: int
    sequences: int

    def share(self, source: int, target: int, start: int, end: int) -> None: ...
    def clear(self, slot: int) -> None: ...


class Run:
    """Tokens ``start`` to ``end`` of a cached beginning; what comes before is in the parents."""

    def __init__(self, sequence: int, start: int, tokens: list[int], parent: Run | None) -> None:
        self.sequence = sequence
        self.start = start
        self.tokens = tokens
        self.parent = parent
        self.children: dict[int, Run] = {}
        self.users = 0  # running requests that stand on it
        self.used = 0  # moment of the last use, on the cache's own count

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


class PrefixCache:
    """The tree. Used by one thread, beside the scheduler that owns the slots."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._root = Run(-1, 0, [], None)
        self._free = list(reversed(range(memory.slots, memory.sequences)))
        self._moment = 0
        self.cells = 0  # cells that the tree takes

    def reach(self, tokens: list[int]) -> int:
        """Return how many of these tokens ``enter`` would find. Changes nothing."""
        run, inside = self._find(tokens)
        return _worth(run.start + inside)

    def enter(self, slot: int, tokens: list[int]) -> Run | None:
        """Give an empty slot the longest cached beginning of these tokens.

        Returns the run that it stands on, until ``leave``: the slot holds ``run.end`` tokens.
        None: nothing is cached that is worth it.
        """
        run, inside = self._find(tokens)
        if not _worth(run.start + inside):
            return None
        if inside < len(run.tokens):
            run = self._split(run, inside)
            if not _worth(run.end):
                return None
        self._memory.share(run.sequence, slot, 0, run.end)
        return self._stand(run)

    def store(self, slot: int, tokens: list[int], standing: Run | None) -> Run | None:
        """Keep all that a slot holds; return the run that it stands on from now on.

        Where others cached the same tokens meanwhile, the slot gives its own copy back.
        Without a sequence to spare nothing changes.
        """
        if len(tokens) < SHORTEST_TOKENS or (standing is not None and standing.end == len(tokens)):
            return standing
        run, inside = self._find(tokens)
        if run is standing and not run.children and run.users == 1:
            self._grow(run, slot, tokens)
            return run
        if inside < len(run.tokens):
            run = self._split(run, inside)
        if run.end < len(tokens):
            run = self._branch(run, slot, tokens) or run
        if run.end < len(tokens):
            return standing
        self.leave(standing)
        self._memory.clear(slot)
        self._memory.share(run.sequence, slot, 0, run.end)
        return self._stand(run)

    def leave(self, run: Run | None) -> None:
        """End what ``enter`` or ``store`` returned."""
        if run is not None:
            run.users -= 1

    def shrink(self, cells: int) -> None:
        """Drop leaves until the tree takes at most ``cells``, or all that is left is in use."""
        while self.cells > cells and self._drop_one():
            pass

    def _find(self, tokens: list[int]) -> tuple[Run, int]:
        """Return the deepest run on the way along ``tokens``, and how much of it agrees."""
        run, inside = self._root, 0
        while inside == len(run.tokens) and run.end < len(tokens):
            child = run.children.get(tokens[run.end])
            if child is None:
                break
            run, inside = child, agreeing(child.tokens, tokens, child.start)
        return run, inside

    def _split(self, run: Run, inside: int) -> Run:
        """Cut a run in two, so that another may begin inside; return the first part.

        Without a sequence to spare it is the run's parent, and nothing changes.
        """
        run.users += 1  # not to be dropped for its own first part
        sequence = self._take_sequence()
        run.users -= 1
        parent = run.parent or self._root
        if sequence is None:
            return parent
        first = Run(sequence, run.start, run.tokens[:inside], parent)
        self._memory.share(run.sequence, sequence, 0, first.end)
        parent.children[first.tokens[0]] = first
        first.children[run.tokens[inside]] = run
        first.used = run.used
        run.parent, run.start, run.tokens = first, first.end, run.tokens[inside:]
        return first

    def _branch(self, run: Run, slot: int, tokens: list[int]) -> Run | None:
        run.users += 1
        sequence = self._take_sequence()
        run.users -= 1
        if sequence is None:
            return None
        leaf = Run(sequence, run.end, tokens[run.end :], run)
        if run.end:
            self._memory.share(run.sequence, sequence, 0, run.end)
        self._memory.share(slot, sequence, run.end, leaf.end)
        run.children[leaf.tokens[0]] = leaf
        self.cells += len(leaf.tokens)
        return leaf

    def _grow(self, run: Run, slot: int, tokens: list[int]) -> None:
        self._memory.share(slot, run.sequence, run.end, len(tokens))
        self.cells += len(tokens) - run.end
        run.tokens += tokens[run.end :]

    def _stand(self, run: Run) -> Run:
        run.users += 1
        self._moment += 1
        above: Run | None = run
        while above is not None:
            above.used = self._moment
            above = above.parent
        return run

    def _take_sequence(self) -> int | None:
        if self._free or self._drop_one():
            return self._free.pop()
        return None

    def _drop_one(self) -> bool:
        """Drop the leaf that was not used for longest. False: every leaf is in use."""
        leaf = min((run for run in self._leaves(self._root) if not run.users), key=lambda run: run.used, default=None)
        if leaf is None or leaf.parent is None:
            return False
        del leaf.parent.children[leaf.tokens[0]]
        self._memory.clear(leaf.sequence)
        self._free.append(leaf.sequence)
        self.cells -= len(leaf.tokens)
        return True

    def _leaves(self, run: Run) -> Iterator[Run]:
        if not run.children and run is not self._root:
            yield run
        for child in run.children.values():
            yield from self._leaves(child)


def _worth(length: int) -> int:
    return length if length >= SHORTEST_TOKENS else 0


def agreeing(run: list[int], tokens: list[int], start: int) -> int:
    """Count how many tokens of a run are also at ``start`` of ``tokens``."""
    most = min(len(run), len(tokens) - start)
    if run[:most] == tokens[start : start + most]:
        return most
    return next(index for index in range(most) if run[index] != tokens[start + index])
