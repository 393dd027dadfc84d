"""Requests that nobody waits for: accepted, run as the engine has places, and taken up again after a restart.

Accepted means on disk: a request that this process leaves behind, stopped or killed, is ``running`` in the
database and is begun anew by the next one. That ends after ``MOST_LIVES`` of them.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from agent.errors import Busy, OutriderError
from agent.pipeline import Pipeline
from agent.records import Accepted, RequestRecord, RequestState
from agent.storage.journal import Journal
from agent.telemetry import LOG, log_fault
from agent.types import FailureKind, InferenceRequest

MOST_WAITING = 1000  # requests that wait or run; what is taken up at the start is not counted out


class Background:
    """Owns the runs. Made and used on one event loop."""

    def __init__(self, pipeline: Pipeline, journal: Journal) -> None:
        self._pipeline = pipeline
        self._journal = journal
        self._runs: dict[str, tuple[InferenceRequest, asyncio.Task[None]]] = {}

    async def start(self) -> int:
        """Take up what an earlier life of the daemon left. Returns how many."""
        found = await self._journal.take_up()
        for request, accepted in found:
            self._begin(request, accepted)
        return len(found)

    async def stop(self) -> None:
        """Stop the runs. Their requests stay as they are, for the next start."""
        tasks = [task for _, task in self._runs.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def submit(self, request: InferenceRequest) -> RequestRecord:
        """Accept a request and return its record; that of its Idempotency-Key, if there is one.

        Raises Busy when too many wait, and what the pipeline refuses.
        """
        if len(self._runs) >= MOST_WAITING:
            raise Busy(f"{MOST_WAITING} requests wait in the background already")
        known, accepted = await self._pipeline.accept(request)
        if known is not None:
            return known
        # Nothing is awaited since the commit: who is cancelled now would leave the request to the next start.
        self._begin(request, accepted)
        return RequestRecord(
            request=request,
            id=request.id,
            state=RequestState.RUNNING,
            model=request.model,
            received_at_ms=request.received_at_ms,
        )

    async def ended(self, request_id: str) -> None:
        """Return when a request does not run any more. At once for one that does not run here."""
        if run := self._runs.get(request_id):
            await asyncio.wait((run[1],))

    def of_key(self, key: str) -> str | None:
        """Return the id of the request of an Idempotency-Key, if it runs here."""
        found = (request.id for request, _ in self._runs.values() if request.idempotency_key == key)
        return next(found, None)

    async def cancel(self, request_id: str) -> bool:
        """End a request that runs. Returns whether it did, by this call."""
        run = self._runs.get(request_id)
        if run is None:
            return False
        request, task = run
        task.cancel()
        await asyncio.wait((task,))
        return await self._ended_by(request, FailureKind.CANCELLED, "cancelled by its caller")

    def _begin(self, request: InferenceRequest, accepted: Accepted) -> None:
        task = asyncio.create_task(self._run(request, accepted), name=f"background {request.id}")
        self._runs[request.id] = (request, task)
        task.add_done_callback(lambda _: self._runs.pop(request.id, None))

    async def _run(self, request: InferenceRequest, accepted: Accepted) -> None:
        try:
            async with aclosing(self._pipeline.run(request, accepted)) as events:
                async for _ in events:
                    pass  # what came of it is on disk
        except OutriderError as error:
            # A refusal is on disk too, unless the configuration has changed and now forbids the request.
            LOG.info("request %s in the background: %s", request.id, error.code)
            await self._ended_by(request, FailureKind.REJECTED, str(error))
        except Exception:
            log_fault("request %s in the background met a fault of this program", request.id)

    async def _ended_by(self, request: InferenceRequest, kind: FailureKind, message: str) -> bool:
        try:
            record = await self._journal.get(request.id)
            if record is None or record.state is not RequestState.RUNNING:
                return False
            await self._pipeline.give_up(request, kind, message)
        except OutriderError as error:
            LOG.error("request %s in the background is taken up at the next start: %s", request.id, error)
            return False
        return True
