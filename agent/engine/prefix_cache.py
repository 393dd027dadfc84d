"""One kept copy of each common beginning of prompts, shared by all who begin with it.

A tree of runs of tokens. Running requests that begin alike share the cells of the context,
without a copy. What nobody uses at the moment is kept outside of the context, since a step
has to look at every cell that is taken, and comes back in about a hundredth of the time that
computing it takes. When the tree is full, leaves go, the least recently used one first, and
pinned beginnings after all others.

A request of a closed scope shares with that scope alone, and with everybody only what is
pinned: how fast it is answered tells it nothing of what others have asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from agent.engine.cache_scope import EVERYBODY
from agent.engine.runtime import Saved

# A shorter beginning costs more in book-keeping than it saves: a token of prompt takes milliseconds to compute.
SHORTEST_TOKENS = 8


class Memory(Protocol):
    """What of a runtime the cache uses; see ``agent.engine.runtime``."""

    saved_tokens: int

    def share(self, source: int, target: int, start: int, end: int) -> None: ...
    def save(self, slot: int, start: int, end: int) -> Saved: ...
    def restore(self, saved: Saved, slot: int, end: int) -> bool: ...
    def divide(self, saved: Saved, at: int) -> tuple[Saved, Saved] | None: ...


class Run:
    """Tokens of a kept beginning; what comes before them is in the parents."""

    def __init__(self, tokens: list[int], saved: Saved, parent: Run | None, scope: str = EVERYBODY) -> None:
        self.tokens = tokens
        self.saved = saved
        self.parent = parent
        self.scope = scope
        self.pinned = False
        self.children: dict[tuple[str, int], Run] = {}  # by scope and first token
        self.slots: set[int] = set()  # those that hold all tokens up to the last of this run
        self.used = 0  # moment of the last use, on the cache's own count

    @property
    def start(self) -> int:
        return self.saved.start

    @property
    def end(self) -> int:
        return self.saved.end

    @property
    def edge(self) -> tuple[str, int]:
        """The key of this run among its parent's children."""
        return self.scope, self.tokens[0]


class PrefixCache:
    """The tree. Used by one thread, beside the scheduler that owns the slots."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._root = Run([], Saved(0, 0, b""), None)
        self._standing: dict[int, set[Run]] = {}  # runs that a slot holds, all others of it on the ways to them
        self._moment = 0
        self._named: list[list[int]] = []  # beginnings that belong to everybody, kept or not yet
        self.tokens = 0  # that are kept

    def reach(self, tokens: list[int], scope: str = EVERYBODY) -> int:
        """Return how many of these tokens ``enter`` would find. Changes nothing."""
        return self._find(tokens, scope)[1]

    def enter(self, slot: int, tokens: list[int], scope: str = EVERYBODY) -> int:
        """Give an empty slot the longest kept beginning of these tokens; return its length, or 0."""
        last, reached = self._find(tokens, scope)
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

    def store(self, slot: int, tokens: list[int], scope: str = EVERYBODY) -> None:
        """Keep the tokens that a slot holds, all of them; what is named of them for everybody."""
        if (public := self.named(tokens)) and self._insert(slot, tokens[:public], EVERYBODY):
            self.pin(tokens[:public])
        if SHORTEST_TOKENS <= len(tokens) <= self._memory.saved_tokens:
            self._insert(slot, tokens, scope)
        self.shrink(self._memory.saved_tokens)

    def _insert(self, slot: int, tokens: list[int], scope: str) -> bool:
        """Keep tokens that a slot holds. False: there is no room for the work at the moment."""
        run, reached = self._find(tokens, scope)
        if reached < run.end:
            first = self._divide(run, reached)
            if first is None:
                return False
            run = first
        if reached < len(tokens):
            run = self._add(run, tokens[reached:], self._memory.save(slot, reached, len(tokens)), scope)
        for held in _path(run):
            self._stand(slot, held)
        return True

    def _add(self, parent: Run, tokens: list[int], saved: Saved, scope: str) -> Run:
        leaf = Run(tokens, saved, parent, scope)
        parent.children[leaf.edge] = leaf
        self.tokens += len(tokens)
        return leaf

    def name(self, tokens: list[int]) -> None:
        """Say that a beginning belongs to everybody, whoever computes it, and is to be pinned.

        It has at least SHORTEST_TOKENS and at most as many as the memory keeps.
        """
        self._named.append(tokens)

    def named(self, tokens: list[int]) -> int:
        """Return how many of these tokens are a named beginning, or 0."""
        return max((len(known) for known in self._named if tokens[: len(known)] == known), default=0)

    def pin(self, tokens: list[int]) -> list[Saved] | None:
        """Have a beginning leave after all that is not pinned. Returns its parts, None when it is not kept whole."""
        run, reached = self._find(tokens, EVERYBODY)
        if reached < len(tokens):
            return None
        if reached < run.end:
            first = self._divide(run, reached)
            if first is None:
                return None
            run = first
        path = _path(run)
        for part in path:
            part.pinned = True
        return [part.saved for part in path]

    def adopt(self, tokens: list[int], parts: Sequence[Saved]) -> bool:
        """Keep a beginning that was saved in an earlier life, and pin it; ``parts`` cover its tokens in order.

        False: it is not kept whole, because there is no room for the work at the moment.
        """
        for part in parts:
            self._adopt(tokens[: part.end], part)
        whole = self.pin(tokens) is not None
        self.shrink(self._memory.saved_tokens)
        return whole

    def _adopt(self, tokens: list[int], part: Saved) -> None:
        """Add what is not kept already of a part, which ends with these tokens."""
        run, reached = self._find(tokens, EVERYBODY)
        if not part.start <= reached < part.end:
            return
        above = run if reached == run.end else self._divide(run, reached)
        halves = (part, part) if reached == part.start else self._memory.divide(part, reached)
        if above is not None and halves is not None:
            self._moment += 1
            self._add(above, tokens[reached:], halves[1], EVERYBODY).used = self._moment

    def leave(self, slot: int) -> None:
        """Say that a slot is about to be cleared."""
        for last in self._standing.pop(slot, ()):
            for run in _path(last):
                run.slots.discard(slot)
        # What was in use could not be dropped when there was too much.
        self.shrink(self._memory.saved_tokens)

    def shrink(self, tokens: int) -> None:
        """Drop leaves until at most ``tokens`` are kept, or all that is left is in use."""
        while self.tokens > tokens:
            leaf = min((run for run in self._leaves(self._root) if not run.slots), key=_worth, default=None)
            if leaf is None or leaf.parent is None:
                return
            del leaf.parent.children[leaf.edge]
            self.tokens -= len(leaf.tokens)

    def _find(self, tokens: list[int], scope: str) -> tuple[Run, int]:
        """Return the deepest run on the way along ``tokens``, and how many tokens agree in all."""
        run, reached = self._root, 0
        while reached == run.end and reached < len(tokens):
            following = self._following(run, tokens[reached], scope)
            if not following:
                break
            agreed, run = max(((agreeing(child.tokens, tokens, reached), child) for child in following), key=_agreed)
            reached += agreed
        return run, reached

    def _following(self, run: Run, token: int, scope: str) -> list[Run]:
        """Return what a request of a scope may find after a run."""
        own, public = run.children.get((scope, token)), run.children.get((EVERYBODY, token))
        if scope == EVERYBODY:
            return [own] if own else []
        return [child for child in (own, public if public and public.pinned else None) if child]

    def _divide(self, run: Run, at: int) -> Run | None:
        """Cut a run in two, so that another may begin inside; return the first part."""
        saved = self._memory.divide(run.saved, at)
        if saved is None or run.parent is None:
            return None
        inside = at - run.start
        first = Run(run.tokens[:inside], saved[0], run.parent, run.scope)
        first.slots, first.used, first.pinned = set(run.slots), run.used, run.pinned
        run.parent.children[first.edge] = first
        run.tokens, run.saved, run.parent = run.tokens[inside:], saved[1], first
        first.children[run.edge] = run
        return first

    def _stand(self, slot: int, run: Run) -> None:
        self._moment += 1
        run.slots.add(slot)
        run.used = self._moment
        self._standing.setdefault(slot, set()).add(run)

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


def _agreed(found: tuple[int, Run]) -> int:
    return found[0]


def _worth(run: Run) -> tuple[bool, int]:
    return run.pinned, run.used
