"""How likely each of some given answers is: a tree of their tokens over one shared prompt.

One request at a time has the scoring context, one batch of it is decoded in a step, so that
the requests that generate text go on between. A log-probability is the same whatever else
is asked, before, beside or together with it (see ``ScoringContext``).
"""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence

import msgspec
import numpy as np

from agent.engine import frames
from agent.engine.cache_scope import EVERYBODY
from agent.engine.prompt_echo import PromptEcho
from agent.engine.runtime import (
    ModelUnloadable,
    Node,
    PromptRejected,
    PromptTooLong,
    Row,
    Runtime,
    ScoringContext,
)
from agent.engine.sampling import NoDistribution
from agent.types import Failure, FailureKind

BEST_STEPS = 2  # steps in one decode of the search for the best: few look less far than needed
MOST_NODES = 2048  # inner nodes in the context at once, unless a single label has more
Path = tuple[int, ...]  # tokens from the end of the prompt on


class LabelTree:
    """The labels' tokens as a tree. Its inner nodes are what has to be decoded."""

    def __init__(self, labels: Sequence[Path]) -> None:
        self.labels = labels
        self.children: dict[Path, list[int]] = {}
        for label in sorted(set(labels)):
            for depth in range(len(label)):
                following = self.children.setdefault(label[:depth], [])
                if not following or following[-1] != label[depth]:  # the labels come in order
                    following.append(label[depth])
        self.inner = sorted(path for path in self.children if path)  # parents before their children
        self.tips = [path for path in self.inner if not any((*path, t) in self.children for t in self.children[path])]

    def groups(self, branches: int) -> Iterator[list[tuple[Path, list[int]]]]:
        """Yield the inner nodes with the branches they belong to, as many at a time as have room."""
        members: dict[Path, list[int]] = {}
        taken = 0
        for tip in self.tips:
            if taken and (taken == branches or len(members) + len(tip) > MOST_NODES):
                yield sorted(members.items())
                members, taken = {}, 0
            for depth in range(1, len(tip) + 1):
                members.setdefault(tip[:depth], []).append(taken)
            taken += 1
        if taken:
            yield sorted(members.items())

    def branches_of(self, path: Path) -> list[int]:
        """Return the branches of an inner node when all tips have one."""
        return [branch for branch, tip in enumerate(self.tips) if tip[: len(path)] == path]

    def first_of_their_line(self) -> list[int]:
        """Return the labels that no other label is a beginning of: disjoint, and together all of them."""
        known = set(self.labels)
        return [
            index
            for index, label in enumerate(self.labels)
            if not any(label[:depth] in known for depth in range(1, len(label)))
        ]


class _Job(msgspec.Struct):
    ask: frames.Score
    prompt: list[int]
    labels: list[Path]
    deadline: float | None
    cached: int = 0
    cancelled: bool = False
    hidden: bytes = b""


class LabelScorer:
    """Answers ``Score`` requests, one after the other. Used by the thread of the scheduler."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        waiting_line: int,
        clock: Callable[[], float] = time.monotonic,
        named: Callable[[list[int]], int] = lambda _: 0,
    ) -> None:
        """``named`` tells how many tokens of a prompt belong to everybody, whatever the scope."""
        self._runtime = runtime
        self._echoes = PromptEcho(runtime)
        self._room = runtime.slots + waiting_line
        self._clock = clock
        self._named = named
        self._waiting: deque[_Job] = deque()
        self._ended: list[frames.Scored] = []
        self._work: Generator[None, None, frames.Scored] | None = None  # of the first in line
        self._context: ScoringContext | None = None
        self._held: list[int] = []  # tokens of the prompt that the context holds
        self._held_scope = EVERYBODY

    @property
    def idle(self) -> bool:
        """True when a step would bring nothing."""
        return not (self._waiting or self._ended)

    def submit(self, ask: frames.Score) -> None:
        """Take a request. What is wrong with it comes out of the next step."""
        if sum(not job.cancelled for job in self._waiting) >= self._room:
            self._refuse(ask, FailureKind.BUSY, "the waiting line is full")
            return
        try:
            prompt = self._prompt(ask)
            labels = [tuple(self._runtime.label_tokens(label)) for label in ask.labels]
        except PromptRejected as error:
            self._refuse(ask, FailureKind.REJECTED, str(error), frames.prompt_param(ask))
            return
        except PromptTooLong as error:
            self._refuse(ask, FailureKind.CONTEXT_OVERFLOW, str(error), frames.prompt_param(ask))
            return
        longest = max(map(len, labels), default=0)
        if ask.hidden and not labels and not self._runtime.hidden_width:
            self._refuse(ask, FailureKind.REJECTED, "this runtime gives no hidden state of the model", "model")
        elif not all(labels) or not (labels or ask.echo or ask.hidden):
            self._refuse(ask, FailureKind.REJECTED, "there is no label, or one without tokens", "labels")
        elif len(prompt) + longest > self._runtime.context_tokens:
            text = f"prompt and longest label have {len(prompt) + longest} tokens, the context has {self._runtime.context_tokens}"
            self._refuse(ask, FailureKind.CONTEXT_OVERFLOW, text, frames.prompt_param(ask))
        else:
            deadline = None if ask.deadline_ms is None else self._clock() + ask.deadline_ms / 1000
            self._waiting.append(_Job(ask, prompt, labels, deadline))

    def _prompt(self, ask: frames.Score) -> list[int]:
        if ask.prompt is not None:
            return self._runtime.text_tokens(ask.prompt)
        return self._runtime.prompt_tokens(ask.messages)

    def cancel(self, request_id: int) -> None:
        """End a request at the next step. Unknown ids are ignored."""
        for job in self._waiting:
            if job.ask.id == request_id:
                job.cancelled = True

    def step(self) -> tuple[frames.Scored, ...]:
        """Drop what is over, decode one batch of the first in line; return what has ended."""
        self._drop_overdue()
        if self._waiting:
            job = self._waiting[0]
            if self._work is None:
                self._work = self._score(job)
            try:
                next(self._work)
            except StopIteration as done:
                self._leave(job, done.value)
            except NoDistribution:
                message = "the model computed no numbers (NaN); its file may be damaged"
                self._leave(job, _failed(job.ask, FailureKind.CRASH, message))
            except ModelUnloadable as error:
                self._leave(job, _failed(job.ask, FailureKind.CONTEXT_OVERFLOW, str(error)))
        ended, self._ended = tuple(self._ended), []
        return ended

    def _drop_overdue(self) -> None:
        now = self._clock()
        for job in list(self._waiting):
            if job.cancelled:
                self._leave(job, _failed(job.ask, FailureKind.CANCELLED, "cancelled"))
            elif job.deadline is not None and now >= job.deadline:
                self._leave(job, _failed(job.ask, FailureKind.TIMEOUT, "the deadline passed"))

    def _leave(self, job: _Job, scored: frames.Scored) -> None:
        if job is self._waiting[0] and self._work is not None:
            self._work.close()
            self._work = None
        self._waiting.remove(job)
        self._ended.append(scored)

    def _refuse(self, ask: frames.Score, kind: FailureKind, message: str, param: str = "") -> None:
        self._ended.append(_failed(ask, kind, message, param))

    # One request: a generator that gives way after every decode.

    def _score(self, job: _Job) -> Generator[None, None, frames.Scored]:
        tree = LabelTree(job.labels)
        nodes = max(MOST_NODES, *map(len, job.labels)) if len(tree.inner) > MOST_NODES else len(tree.inner)
        context = self._begin(job, nodes)
        if job.ask.echo:
            return (yield from self._echo(context, job))
        if not job.labels:
            yield from self._decode(context, job, tree, _prompt_nodes(job), {(): 0.0})
            return frames.Scored(
                id=job.ask.id, hidden=job.hidden, prompt_tokens=len(job.prompt), cached_tokens=job.cached
            )
        # A tree of one step is decoded whole at the price of its best part.
        worth_it = context.step_tokens < len(tree.inner) <= MOST_NODES and len(tree.tips) <= context.branches
        if job.ask.best_only and worth_it:
            return (yield from self._best(context, job, tree))
        return (yield from self._all(context, job, tree))

    def _begin(self, job: _Job, nodes: int) -> ScoringContext:
        """Make room, and keep what the last prompt and this one have in common."""
        context = self._runtime.scoring(len(job.prompt) + nodes)
        if context is not self._context:
            self._context, self._held = context, []
        if job.ask.scope != self._held_scope:  # what it took over from another would show in how fast it is
            self._held, self._held_scope = self._held[: self._named(job.prompt)], job.ask.scope
        if job.ask.echo:
            job.cached = self._echoes.cached(job.prompt, self._held, job.ask.top_logprobs)
        else:
            # The last token is decoded anew: its row is needed.
            most = min(len(self._held), len(job.prompt) - 1)
            job.cached = next((at for at in range(most) if self._held[at] != job.prompt[at]), most)
        self._held = self._held[: job.cached]
        context.keep(job.cached)
        return context

    def _all(self, context: ScoringContext, job: _Job, tree: LabelTree) -> Generator[None, None, frames.Scored]:
        """Every label: the rest of the prompt and the tree in as few batches as they fit."""
        size = len(job.prompt)
        logprobs: dict[Path, float] = {(): 0.0}
        nodes = _prompt_nodes(job)
        for number, group in enumerate(tree.groups(context.branches)):
            if number:
                context.keep(size)
            nodes += [
                (path, Node(path[-1], size + len(path) - 1, branches, wants_row=True)) for path, branches in group
            ]
            yield from self._decode(context, job, tree, nodes, logprobs)
            nodes = []
        if nodes:  # no label has a second token
            yield from self._decode(context, job, tree, nodes, logprobs)
        return self._scored(job, tree, logprobs)

    def _decode(
        self,
        context: ScoringContext,
        job: _Job,
        tree: LabelTree,
        nodes: Sequence[tuple[Path, Node]],
        logprobs: dict[Path, float],
    ) -> Generator[None, None, None]:
        """Decode the nodes and note the log-probability of each child of those with a row."""
        wants_state = job.ask.hidden and self._runtime.hidden_width > 0
        for begin in range(0, len(nodes), context.batch_tokens):
            batch = nodes[begin : begin + context.batch_tokens]
            ends_prompt = wants_state and any(node.wants_row and not path for path, node in batch)
            rows = iter(context.decode([node for _, node in batch], hidden=ends_prompt))
            if ends_prompt:
                job.hidden = _finite(context.hidden()).astype("<f4").tobytes()
            self._held += [node.token for _, node in batch if node.branches is None]
            for path, node in batch:
                if node.wants_row:
                    following = tree.children.get(path, [])
                    figures = _logprobs(next(rows), following)
                    for token, figure in zip(following, figures, strict=True):
                        logprobs[(*path, token)] = logprobs[path] + figure
            yield

    def _best(self, context: ScoringContext, job: _Job, tree: LabelTree) -> Generator[None, None, frames.Scored]:
        """Find the best label exactly: a longer path is never likelier, so what cannot win is not decoded."""
        offsets = job.ask.offsets or (0.0,) * len(job.labels)
        size = len(job.prompt)
        above: dict[Path, float] = {}  # the highest offset of the labels that go through a path
        for label, offset in zip(job.labels, offsets, strict=True):
            for depth in range(1, len(label) + 1):
                above[label[:depth]] = max(offset, above.get(label[:depth], -math.inf))
        logprobs: dict[Path, float] = {(): 0.0}
        yield from self._decode(context, job, tree, _prompt_nodes(job), logprobs)
        seen: set[Path] = {()}
        frontier: list[tuple[float, Path]] = []
        while True:
            for path in [path for path in logprobs if path not in seen]:
                seen.add(path)
                if path in tree.children:
                    heapq.heappush(frontier, (-(logprobs[path] + above[path]), path))
            found = [
                logprobs[label] + offset for label, offset in zip(job.labels, offsets, strict=True) if label in logprobs
            ]
            best = max(found, default=-math.inf)
            nodes: list[tuple[Path, Node]] = []
            # A step costs the same whatever is in it: its room goes to the next best.
            while frontier and -frontier[0][0] >= best and len(nodes) < BEST_STEPS * context.step_tokens:
                path = heapq.heappop(frontier)[1]
                nodes.append((path, Node(path[-1], size + len(path) - 1, tree.branches_of(path), wants_row=True)))
            if not nodes:
                return self._scored(job, tree, logprobs)
            yield from self._decode(context, job, tree, nodes, logprobs)

    def _scored(self, job: _Job, tree: LabelTree, logprobs: dict[Path, float]) -> frames.Scored:
        figures = [logprobs.get(label) for label in job.labels]
        offsets = job.ask.offsets or (0.0,) * len(figures)
        totals = [-math.inf if f is None else f + offset for f, offset in zip(figures, offsets, strict=True)]
        disjoint = [figures[index] for index in tree.first_of_their_line()]
        whole = not any(figure is None for figure in figures)
        return frames.Scored(
            id=job.ask.id,
            logprobs=tuple(figures),
            label_tokens=tuple(map(len, job.labels)),
            mass=min(1.0, math.fsum(math.exp(figure) for figure in disjoint if figure is not None)) if whole else None,
            best=totals.index(max(totals)) if totals else None,
            hidden=job.hidden,
            prompt_tokens=len(job.prompt),
            cached_tokens=job.cached,
        )

    def _echo(self, context: ScoringContext, job: _Job) -> Generator[None, None, frames.Scored]:
        """Return the prompt's tokens with what the tokens before them said of each."""
        prompt, following = yield from self._echoes.run(
            context, job.prompt, job.cached, job.ask.top_logprobs, self._held
        )
        return frames.Scored(
            id=job.ask.id,
            prompt=prompt,
            following=following,
            ends=self._runtime.ends(following.id),
            prompt_tokens=len(job.prompt),
            cached_tokens=job.cached,
        )


def _prompt_nodes(job: _Job) -> list[tuple[Path, Node]]:
    """Return what of the prompt is not computed; the last of it wants a row."""
    size = len(job.prompt)
    return [((), Node(job.prompt[at], at, None, wants_row=at == size - 1)) for at in range(job.cached, size)]


def _finite(state: Row) -> Row:
    if not np.isfinite(state).all():
        raise NoDistribution
    return state


def _failed(ask: frames.Score, kind: FailureKind, message: str, param: str = "") -> frames.Scored:
    return frames.Scored(id=ask.id, failure=Failure(kind, message, param))


def _logprobs(row: Row, tokens: Sequence[int]) -> list[float]:
    """Return the log-probabilities of some tokens in nats. Raises NoDistribution."""
    best = float(row.max())
    if not math.isfinite(best):
        raise NoDistribution
    total = best + math.log(float(np.exp(row - best).sum()))
    return [min(0.0, float(row[token]) - total) for token in tokens]
