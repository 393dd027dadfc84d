"""The path of one request, on one page.

A request is routed, generated locally in a child process, judged for confidence, decided,
and either answered or queued in the outbox. The dispatcher escalates the outbox when a
target is reachable, and the late answer is joined to its request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol

import msgspec

from agent import routing, task_writer
from agent.classification import Classifier, LabelEngine
from agent.confidence import labels as label_confidence
from agent.confidence.calibration import Judged
from agent.confidence.estimators import Estimator
from agent.confidence.fields import FieldJudge
from agent.errors import DiskFull, EngineFailed, InvalidRequest, QueueFull
from agent.holds import Holds
from agent.label_likeness import LabelLikeness
from agent.moderation import Moderator
from agent.records import Accepted, RequestRecord, RequestState
from agent.refusal import refusal
from agent.task_book import TaskBook
from agent.task_writer import Example, TaskWriter, WritingEngine
from agent.telemetry import LOG, METRICS
from agent.text_settings import ModerationSettings
from agent.topics import Topics
from agent.types import (
    Action,
    Confidence,
    Decision,
    Delta,
    EgressPolicy,
    Failure,
    FailureKind,
    Generation,
    InferenceRequest,
    OnLowConfidence,
    Reason,
    RequestKind,
)

MOST_RECORDS_UNDER_WAY = 1000


class Engine(LabelEngine, WritingEngine, Protocol):
    """Where text is generated, labels are scored and texts become vectors."""


class Journal(Protocol):
    """What storage promises the pipeline. ``open`` and ``settle`` return after the commit."""

    async def open(self, request: InferenceRequest, accepted: Accepted, *, now_ms: int) -> RequestRecord | None: ...

    async def settle(
        self,
        request: InferenceRequest,
        generation: Generation | None,
        confidence: Confidence | None,
        decision: Decision,
        *,
        now_ms: int,
    ) -> RequestRecord: ...

    async def record(
        self,
        request: InferenceRequest,
        accepted: Accepted,
        generation: Generation | None,
        confidence: Confidence | None,
        decision: Decision,
        *,
        now_ms: int,
    ) -> RequestRecord:
        """Store a request that was not opened, with its end, in one transaction."""
        ...

    def watch(self, request_id: str) -> AsyncIterator[RequestRecord]: ...


class Verdict(msgspec.Struct, frozen=True):
    """The last event of a run: the request as it now stands on disk."""

    record: RequestRecord
    replayed: bool = False  # an Idempotency-Key brought an earlier answer back


class Pipeline:
    """Runs requests. Holds no state of a request between runs, but for records under way to the disk."""

    def __init__(
        self,
        engine: Engine,
        journal: Journal,
        estimator: Estimator,
        policy: Callable[[], routing.Policy],
        now_ms: Callable[[], int],
        wake_dispatcher: Callable[[], None],
        judge_fields: FieldJudge,
        tasks: TaskBook,
        moderation: ModerationSettings | None = None,
    ) -> None:
        self._journal = journal
        self._judge = estimator
        self._policy = policy
        self._now_ms = now_ms
        self._wake_dispatcher = wake_dispatcher
        self.holds = Holds()
        self._tasks = tasks
        self._classifier = Classifier(engine, tasks, LabelLikeness(engine))
        self._writer = TaskWriter(engine, tasks, judge_fields)
        self._topics = Topics(engine, tasks)
        self._moderator = Moderator(moderation or ModerationSettings(), self._classifier, tasks)
        self._records: set[asyncio.Future[RequestRecord]] = set()

    def may_leave(self) -> bool:
        """Whether some target may be asked now, for anybody."""
        policy = self._policy()
        targets = any(target.egress is not EgressPolicy.NEVER for target in policy.targets)
        return targets and policy.ceiling is not EgressPolicy.NEVER

    async def accept(self, request: InferenceRequest) -> tuple[RequestRecord | None, Accepted]:
        """Make a request durable that ``run`` is to take up later. Returns the record of its Idempotency-Key, or None."""
        request = await self._moderator.passed(request)
        policy = self._policy()
        route = routing.before(request, policy, await self._topics.look(request, policy.rules))
        return await self._open(request, route), route.accepted

    async def run(self, request: InferenceRequest, opened: Accepted | None = None) -> AsyncGenerator[Delta | Verdict]:
        """Yield deltas while text is made, then one Verdict. ``opened``: it is durable, and came in by this route.

        Raises an OutriderError when there is neither a local answer nor a row that waits:
        the request is then stored as failed. What moderation refuses is not stored.
        """
        if opened is None:
            request = await self._moderator.passed(request)
        policy = self._policy()
        facts = await self._topics.look(request, policy.rules)
        if opened is None:
            route = routing.before(request, policy, facts)
        else:
            route = routing.resumed(request, opened, policy, facts)
        durable_first = opened is not None or _is_durable_first(request, route)
        if opened is None and durable_first:
            try:
                known = await self._open(request, route)
            except DiskFull:
                if not _may_go_unrecorded(request, route):
                    raise
                durable_first = False  # a local answer needs no disk; it is not queued, whatever it is worth
            else:
                if known:
                    yield Verdict(await self._held(request, known), replayed=True)
                    return
        unopened = None if durable_first else route.accepted
        generation: Generation | None = None
        try:
            if route.use_local:
                # Closed at once when the caller leaves, so that the engine stops decoding.
                async with aclosing(self._generate(request)) as events:
                    async for event in events:
                        if isinstance(event, Generation):
                            generation = event
                        else:
                            yield event
            judged = self._judged(request, generation) if generation else None
            confidence = judged.confidence if judged else None
            if judged and judged.threshold is not None:
                policy = msgspec.structs.replace(policy, threshold=judged.threshold)
            decision = routing.after(request, route, generation, confidence, policy)
            decision = self._tasks.sampled(request, route, decision)
        except (GeneratorExit, asyncio.CancelledError):
            # The caller left. Nothing was promised to it: the request ends here, on disk too.
            if opened is None:
                gone = self.give_up(request, FailureKind.CANCELLED, "the caller went away", unopened=unopened)
                await asyncio.shield(gone)
            raise
        except Exception as error:
            # A fault of this program: the request must not stay "running", and the fault must show.
            message = f"internal error: {type(error).__name__}"
            await self.give_up(request, FailureKind.CRASH, message, unopened=unopened)
            raise
        if durable_first or decision.action is Action.QUEUED:
            try:
                record = await self._settle_surely(request, generation, confidence, decision, unopened=unopened)
            except DiskFull:
                if durable_first or generation is None or generation.failure:
                    raise
                decision = msgspec.structs.replace(decision, action=Action.UNCERTAIN, reason=Reason.DISK_FULL)
                record = await self._record_later(request, route.accepted, generation, confidence, decision)
        else:
            record = await self._record_later(request, route.accepted, generation, confidence, decision)
        if decision.action is Action.REFUSED:
            raise refusal(generation.failure if generation else None)
        yield Verdict(await self._held(request, record))

    def _generate(self, request: InferenceRequest) -> AsyncGenerator[Delta | Generation]:
        if request.kind is RequestKind.CLASSIFY:
            return self._classify(request)
        return self._writer.generate(request)

    async def _classify(self, request: InferenceRequest) -> AsyncGenerator[Delta | Generation]:
        yield await self._classifier.run(request)

    async def tried(self, request: InferenceRequest) -> tuple[Generation, Confidence]:
        """Return the local answer and its confidence before any calibration. Nothing is stored, decided or escalated."""
        async with aclosing(self._generate(request)) as events:
            async for event in events:
                if isinstance(event, Generation):
                    return event, self._uncalibrated(request, event)
        raise EngineFailed("the engine ended without an answer; see the daemon's log")

    async def drafted(self, request: InferenceRequest, example: Example) -> Generation:
        """Return a task's local answer as it would be without what was taught, behind these demonstrations."""
        return await self._writer.draft(request, example)

    def _uncalibrated(self, request: InferenceRequest, generation: Generation) -> Confidence:
        if request.kind is RequestKind.CLASSIFY:
            return label_confidence.judge(generation)
        found = self._judge(generation)
        return task_writer.judge(found, generation) if request.task else found

    def _judged(self, request: InferenceRequest, generation: Generation) -> Judged:
        judged = self._tasks.judge(request, generation, self._uncalibrated(request, generation))
        self._tasks.seen(request, generation, judged.confidence)
        return judged

    async def _open(self, request: InferenceRequest, route: routing.Route) -> RequestRecord | None:
        """Make the request durable, or find the answer of its Idempotency-Key."""
        opening = asyncio.ensure_future(self._journal.open(request, route.accepted, now_ms=self._now_ms()))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            # The caller left while the row was written: it must not stay "running".
            if await opening is None:
                await self.give_up(request, FailureKind.CANCELLED, "the caller went away")
            raise

    async def _settle_surely(
        self,
        request: InferenceRequest,
        generation: Generation | None,
        confidence: Confidence | None,
        decision: Decision,
        *,
        unopened: Accepted | None,
    ) -> RequestRecord:
        """Settle to the end even if the caller leaves: a row once written must be told to the dispatcher."""
        settling = asyncio.ensure_future(self._settle(request, generation, confidence, decision, unopened=unopened))
        try:
            return await asyncio.shield(settling)
        except asyncio.CancelledError:
            await asyncio.wait((settling,))
            raise

    async def _settle(
        self,
        request: InferenceRequest,
        generation: Generation | None,
        confidence: Confidence | None,
        decision: Decision,
        *,
        unopened: Accepted | None,
    ) -> RequestRecord:
        """Store result and decision in one transaction; wake the dispatcher for a new row."""
        settle = self._ending(unopened)
        try:
            record = await settle(request, generation, confidence, decision, now_ms=self._now_ms())
        except QueueFull:
            # The row is refused, visibly; a local text is still worth having.
            has_text = generation is not None and generation.failure is None
            action = Action.UNCERTAIN if has_text else Action.REFUSED
            decision = msgspec.structs.replace(decision, action=action, reason=Reason.QUEUE_FULL)
            record = await settle(request, generation, confidence, decision, now_ms=self._now_ms())
            if action is Action.REFUSED:
                raise
        if record.escalation is not None:
            self._wake_dispatcher()
        return record

    async def _held(self, request: InferenceRequest, record: RequestRecord) -> RequestRecord:
        """Hold a caller who asked to wait until its row settles or its deadline passes."""
        waits = request.on_low_confidence is OnLowConfidence.WAIT and not request.background
        if not waits or record.state is not RequestState.QUEUED:
            return record
        left_s = None
        if request.deadline_at_ms is not None:
            left_s = max(0.0, (request.deadline_at_ms - self._now_ms()) / 1000)
        try:
            async with self.holds.within(left_s):
                async for latest in self._journal.watch(record.id):
                    texts_gone = latest.request is None  # with its end; this caller still gets the draft
                    draft = {"request": request, "generation": record.generation} if texts_gone else {}
                    record = msgspec.structs.replace(latest, **draft)
                    if record.state is not RequestState.QUEUED:
                        break
        except TimeoutError:
            pass  # the deadline, or the daemon stops: the caller gets the draft and where to ask later
        return record

    def _ending(self, unopened: Accepted | None) -> Callable[..., Awaitable[RequestRecord]]:
        """Return what stores the end of a request: of one that was opened, or of one that was not."""
        if unopened is None:
            return self._journal.settle

        def record(request: InferenceRequest, *result: Any, now_ms: int) -> Awaitable[RequestRecord]:
            return self._journal.record(request, unopened, *result, now_ms=now_ms)

        return record

    async def _record_later(
        self,
        request: InferenceRequest,
        accepted: Accepted,
        generation: Generation | None,
        confidence: Confidence | None,
        decision: Decision,
    ) -> RequestRecord:
        """Return the record of a request that was not opened; it goes to the disk behind the answer."""
        if len(self._records) >= MOST_RECORDS_UNDER_WAY:
            await asyncio.wait(self._records, return_when=asyncio.FIRST_COMPLETED)
        now_ms = self._now_ms()
        writing = asyncio.ensure_future(
            self._journal.record(request, accepted, generation, confidence, decision, now_ms=now_ms)
        )
        self._records.add(writing)
        writing.add_done_callback(self._recorded)
        return RequestRecord(
            request=request,
            id=request.id,
            state=RequestState.ANSWERED if decision.action is not Action.REFUSED else RequestState.FAILED,
            model=request.model,
            received_at_ms=request.received_at_ms,
            settled_at_ms=now_ms,
            generation=generation,
            confidence=confidence,
            decision=decision,
            answered_by="local" if decision.action is not Action.REFUSED else None,
        )

    def _recorded(self, writing: asyncio.Future[RequestRecord]) -> None:
        self._records.discard(writing)
        if not writing.cancelled() and not writing.exception() and writing.result().escalation is not None:
            self._wake_dispatcher()
        if not writing.cancelled() and (error := writing.exception()):
            METRICS.count("records_lost")
            LOG.error("the record of an answered request is lost: %s: %s", type(error).__name__, error)

    async def flush(self) -> None:
        """Wait until every record is on disk."""
        if self._records:
            await asyncio.wait(self._records)

    async def give_up(
        self, request: InferenceRequest, kind: FailureKind, message: str, *, unopened: Accepted | None = None
    ) -> None:
        """End a request without an answer, on disk."""
        decision = Decision(
            action=Action.REFUSED, reason=Reason(kind.value), rule_id="failure", trace=(f"failure: {message}",)
        )
        generation = Generation(failure=Failure(kind, message))
        settle = self._ending(unopened)
        await settle(request, generation, None, decision, now_ms=self._now_ms())

    def decide_cut_short(self, request: InferenceRequest, accepted: Accepted, generation: Generation) -> Decision:
        """Decide about a request that the end of an earlier life of the daemon cut short.

        The stricter of two policies holds: that of its acceptance, and the present one.
        """
        policy = self._policy()
        try:
            return routing.after(request, routing.resumed(request, accepted, policy), generation, None, policy)
        except InvalidRequest as error:  # the configuration has changed since, and now forbids it
            return Decision(action=Action.REFUSED, reason=Reason.CRASH, rule_id="failure", trace=(str(error),))


def _may_go_unrecorded(request: InferenceRequest, route: routing.Route) -> bool:
    """Whether a request may be answered here though nothing can be stored: nobody counts on finding it again."""
    return route.use_local and not route.straight and request.idempotency_key is None and not request.background


def _is_durable_first(request: InferenceRequest, route: routing.Route) -> bool:
    """Whether a request is on disk before any work: all but a choice of labels that nobody can ask for again."""
    return request.kind is not RequestKind.CLASSIFY or request.idempotency_key is not None or route.straight
