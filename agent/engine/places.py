"""Who gets the places of a model: requests that somebody waits for, then those in the background.

The background fills what is free. When somebody comes and no place is free, the request in the
background that began last gives its place up, at once, and begins anew when there is one again:
what is lost is its work since then, at most the beginning of one answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Protocol, TypeVar

from agent.scores import Scores, Vectors
from agent.types import Delta, Failure, FailureKind, Generation, InferenceRequest, Message

T = TypeVar("T")


class PlacedEngine(Protocol):
    """What is shared out: the part of the engine that the pipeline calls."""

    def generate(self, request: InferenceRequest) -> AsyncGenerator[Delta | Generation]: ...

    async def score(
        self,
        request: InferenceRequest,
        labels: Sequence[str],
        *,
        messages: Sequence[Message] | None = None,
        hidden: bool = False,
    ) -> Scores: ...

    async def embed(self, model: str, texts: Sequence[str], *, deadline_at_ms: int | None = None) -> Vectors: ...


class _Place:
    """What a request in the background holds."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.wanted = asyncio.Event()  # it must be given back


class _Line:
    """The places of one model."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._awaited = 0
        self._held: list[_Place] = []  # in the order in which they were taken
        self._waiting: deque[tuple[_Place, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def awaited(self, size: int) -> AsyncGenerator[None]:
        """Take places for a request that somebody waits for: now, whoever has them."""
        self._awaited += size
        self._call_back()
        try:
            yield
        finally:
            self._awaited -= size
            self._hand_out()

    async def take_spare(self, size: int, *, again: bool) -> _Place:
        """Wait for places that nobody wants. ``again``: before the others that wait."""
        place = _Place(min(size, self._places))  # more would never come
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (place, turn)
        if again:
            self._waiting.appendleft(entry)
        else:
            self._waiting.append(entry)
        self._hand_out()
        try:
            await turn
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
            else:
                self.give_back(place)
            raise
        return place

    def give_back(self, place: _Place) -> None:
        """Let others have a place."""
        self._held.remove(place)
        self._hand_out()

    @property
    def _free(self) -> int:
        return self._places - self._awaited - sum(place.size for place in self._held)

    def _hand_out(self) -> None:
        while self._waiting and self._waiting[0][0].size <= self._free:
            place, turn = self._waiting.popleft()
            self._held.append(place)
            if not turn.done():  # else who waited was cancelled a moment ago, and gives it back when it learns of that
                turn.set_result(None)

    def _call_back(self) -> None:
        missing = -self._free
        for place in reversed(self._held):
            if missing <= 0:
                return
            place.wanted.set()
            missing -= place.size


class Places:
    """An engine whose places go to those first that somebody waits for. What it yields is the engine's."""

    def __init__(self, engine: PlacedEngine, places: int, now_ms: Callable[[], int]) -> None:
        """``places``: how many requests each model decodes at the same time."""
        self._engine = engine
        self._places = places
        self._now_ms = now_ms
        self._lines: dict[str, _Line] = {}

    async def generate(self, request: InferenceRequest) -> AsyncGenerator[Delta | Generation]:
        """Yield deltas, then one Generation; of a request in the background the Generation alone."""
        line, size = self._line(request.model), request.sampling.drawn
        if not request.background:
            async with line.awaited(size), aclosing(self._engine.generate(request)) as events:
                async for event in events:
                    yield event
            return
        try:
            yield await self._when_spare(request, size, lambda: self._whole(request))
        except TimeoutError:
            failure = Failure(FailureKind.TIMEOUT, "the deadline passed before there was a place")
            yield Generation(model=request.model, failure=failure)

    async def score(
        self,
        request: InferenceRequest,
        labels: Sequence[str],
        *,
        messages: Sequence[Message] | None = None,
        hidden: bool = False,
    ) -> Scores:
        """Return the scores of the engine."""
        if not request.background:
            async with self._line(request.model).awaited(1):
                return await self._engine.score(request, labels, messages=messages, hidden=hidden)
        try:
            return await self._when_spare(
                request, 1, lambda: self._engine.score(request, labels, messages=messages, hidden=hidden)
            )
        except TimeoutError:
            failure = Failure(FailureKind.TIMEOUT, "the deadline passed before there was a place")
            return Scores(model=request.model, failure=failure)

    async def embed(self, model: str, texts: Sequence[str], *, deadline_at_ms: int | None = None) -> Vectors:
        """Return the vectors of the engine: they take no place."""
        return await self._engine.embed(model, texts, deadline_at_ms=deadline_at_ms)

    def _line(self, model: str) -> _Line:
        return self._lines.setdefault(model, _Line(self._places))

    async def _whole(self, request: InferenceRequest) -> Generation:
        async with aclosing(self._engine.generate(request)) as events:
            async for event in events:
                if isinstance(event, Generation):
                    return event
        raise RuntimeError("the engine ended without a generation")

    async def _when_spare(self, request: InferenceRequest, size: int, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do the work in a spare place, from its beginning again each time that the place is wanted.

        Raises TimeoutError when the deadline passes without a place; in one, the engine keeps it.
        """
        line, again = self._line(request.model), False
        while True:
            left_s = None
            if request.deadline_at_ms is not None:
                left_s = max(0.0, (request.deadline_at_ms - self._now_ms()) / 1000)
            async with asyncio.timeout(left_s):
                place = await line.take_spare(size, again=again)
            task = asyncio.ensure_future(work())
            wanted = asyncio.ensure_future(place.wanted.wait())
            try:
                await asyncio.wait((task, wanted), return_when=asyncio.FIRST_COMPLETED)
                if task.done():
                    return task.result()
            finally:
                task.cancel()
                wanted.cancel()
                try:
                    await asyncio.gather(task, wanted, return_exceptions=True)
                finally:  # also when this is cancelled once more
                    line.give_back(place)
            again = True
