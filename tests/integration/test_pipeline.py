"""One request through the pipeline, on real storage, with an engine that says what it is told."""

import asyncio
import contextlib
import math
from pathlib import Path

import pytest

from agent import routing
from agent.confidence.estimators import estimator
from agent.confidence.fields import field_judge
from agent.errors import Busy, ContextOverflow, DeadlineExceeded, EngineFailed, InvalidRequest, QueueFull, WrongState
from agent.identifiers import uuid7
from agent.pipeline import Pipeline, Verdict
from agent.records import CloudAnswer, RequestState
from agent.settings import QueueSettings, RetentionSettings
from agent.storage import open_storage
from agent.task_book import TaskBook
from agent.task_folder import TaskFolder
from agent.types import (
    Delta,
    EgressPolicy,
    Failure,
    FailureKind,
    Generation,
    InferenceRequest,
    Message,
    OnLowConfidence,
    RouteMode,
    Token,
)

NOW = 1_000_000_000_000
TARGET = routing.TargetRule("main", EgressPolicy.ALLOW, fingerprint="f1")


class SaidEngine:
    """Yields what it is told; notes whether it was closed early."""

    def __init__(self):
        self.events, self.closed, self.asked = [], False, 0

    def says(self, probability=0.99, failure=None, text="a b"):
        token = Token(1, b"a", math.log(probability), -3.0, 0.1)
        self.events = [
            *(Delta(part, (token,)) for part in text.split(" ")),
            Generation(text=text, finish_reason="stop", tokens=(token,) * 2, failure=failure),
        ]

    async def generate(self, request):
        self.asked += 1
        try:
            for event in self.events:
                yield event
        except GeneratorExit:
            self.closed = True
            raise


class Road:
    def __init__(self, storage, targets):
        self.storage, self.engine, self.woken = storage, SaidEngine(), 0
        self.policy = routing.Policy(0.5, targets)
        self.pipeline = Pipeline(
            self.engine,
            storage.journal,
            estimator("lowest_tenth"),
            lambda: self.policy,
            lambda: NOW,
            self.wake,
            field_judge("lowest_tenth"),
            TaskBook(TaskFolder(Path("/nowhere"))),
        )

    def wake(self):
        self.woken += 1

    def request(self, **fields):
        return InferenceRequest(
            id=uuid7(NOW), model="m", messages=(Message("user", "hi"),), received_at_ms=NOW, **fields
        )

    async def run(self, request=None, **fields):
        async for event in self.pipeline.run(request or self.request(**fields)):
            last = event
        return last

    async def only_state(self):
        (record,) = await self.storage.journal.list()
        return record.state


@contextlib.asynccontextmanager
async def opened(tmp_path, targets=(TARGET,), **queue):
    storage = await open_storage(
        tmp_path / "data", QueueSettings(ballast_bytes=0, **queue), RetentionSettings(), now_ms=NOW
    )
    try:
        yield Road(storage, targets)
    finally:
        await storage.close()


async def test_sure(tmp_path):
    async with opened(tmp_path) as road:
        road.engine.says(0.99)
        verdict = await road.run()
        assert isinstance(verdict, Verdict)
        assert verdict.record.state is RequestState.ANSWERED
        assert verdict.record.confidence.score == pytest.approx(0.99)
        assert road.woken == 0


async def test_unsure_is_on_disk_before_the_verdict_and_wakes_the_dispatcher(tmp_path):
    async with opened(tmp_path) as road:
        road.engine.says(0.1)
        verdict = await road.run()
        assert verdict.record.state is RequestState.QUEUED
        assert verdict.record.escalation.target == "main"
        assert road.woken == 1


@pytest.mark.parametrize(
    ("kind", "error", "state"),
    [
        (FailureKind.BUSY, Busy, RequestState.FAILED),
        (FailureKind.TIMEOUT, DeadlineExceeded, RequestState.FAILED),
        (FailureKind.REJECTED, InvalidRequest, RequestState.FAILED),
        (FailureKind.CRASH, None, RequestState.QUEUED),
        (FailureKind.CONTEXT_OVERFLOW, None, RequestState.QUEUED),
    ],
)
async def test_failures_with_a_target(tmp_path, kind, error, state):
    async with opened(tmp_path) as road:
        road.engine.says(failure=Failure(kind, "why"))
        if error:
            with pytest.raises(error, match="why"):
                await road.run()
        else:
            assert (await road.run()).record.decision.reason.value == kind.value
        assert await road.only_state() is state


@pytest.mark.parametrize(
    ("kind", "error"), [(FailureKind.CRASH, EngineFailed), (FailureKind.CONTEXT_OVERFLOW, ContextOverflow)]
)
async def test_failures_with_nobody_to_ask(tmp_path, kind, error):
    async with opened(tmp_path, targets=()) as road:
        road.engine.says(failure=Failure(kind, "why"))
        with pytest.raises(error):
            await road.run()
        assert await road.only_state() is RequestState.FAILED


async def test_a_full_queue_keeps_the_local_text_and_says_so(tmp_path):
    async with opened(tmp_path, max_rows=1) as road:
        road.engine.says(0.1)
        await road.run()
        verdict = await road.run()
        assert verdict.record.state is RequestState.ANSWERED
        assert verdict.record.decision.reason.value == "queue_full"
        assert verdict.record.generation.text == "a b"
        with pytest.raises(QueueFull):
            await road.run(route_mode=RouteMode.CLOUD_ONLY)


async def test_cloud_only_does_not_ask_the_local_model(tmp_path):
    async with opened(tmp_path) as road:
        verdict = await road.run(route_mode=RouteMode.CLOUD_ONLY)
        assert road.engine.asked == 0
        assert verdict.record.state is RequestState.QUEUED
        assert verdict.record.generation is None


async def test_the_same_key_runs_once(tmp_path):
    async with opened(tmp_path) as road:
        road.engine.says(0.99)
        first = await road.run(idempotency_key="k", body_sha256="b")
        again = await road.run(idempotency_key="k", body_sha256="b")
        assert road.engine.asked == 1
        assert again.replayed
        assert again.record.id == first.record.id


async def test_a_caller_who_leaves_ends_the_generation_and_the_request(tmp_path):
    async with opened(tmp_path) as road:
        road.engine.says(0.1)
        run = road.pipeline.run(road.request())
        assert isinstance(await anext(run), Delta)
        await run.aclose()
        assert road.engine.closed
        assert await road.only_state() is RequestState.CANCELLED


async def test_a_caller_who_leaves_before_the_work_begins(tmp_path):
    async with opened(tmp_path) as road:
        road.engine.says(0.99)
        running = asyncio.create_task(road.run())
        await asyncio.sleep(0)  # the row is being written
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert road.engine.asked == 0
        assert await road.only_state() is RequestState.CANCELLED


async def test_a_caller_who_leaves_while_its_row_is_written_does_not_keep_it_from_being_sent(tmp_path):
    async with opened(tmp_path) as road:
        road.engine.says(0.1)
        settle, written, told = road.storage.journal.settle, asyncio.Event(), asyncio.Event()

        async def slow_settle(*values, **named):
            record = await settle(*values, **named)
            written.set()
            await told.wait()
            return record

        road.storage.journal.settle = slow_settle
        running = asyncio.create_task(road.run())
        await written.wait()
        running.cancel()
        await asyncio.sleep(0)
        told.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert await road.only_state() is RequestState.QUEUED
        assert road.woken == 1


async def test_a_stop_ends_what_only_waits(tmp_path):
    async with opened(tmp_path) as road:
        road.engine.says(0.1)
        running = asyncio.create_task(road.run(on_low_confidence=OnLowConfidence.WAIT))
        while not road.woken:
            await asyncio.sleep(0.001)
        road.pipeline.holds.end()
        road.pipeline.holds.end()
        assert (await running).record.state is RequestState.QUEUED
        assert (await road.run(on_low_confidence=OnLowConfidence.WAIT)).record.state is RequestState.QUEUED


def main_target(egress, fingerprint="f1"):
    return routing.TargetRule("main", egress, fingerprint=fingerprint)


@pytest.mark.parametrize(
    ("then", "now", "state", "target"),
    [
        ((TARGET,), (TARGET,), "pending", "main"),
        ((), (TARGET,), "awaiting_approval", None),
        ((main_target(EgressPolicy.APPROVE),), (TARGET,), "awaiting_approval", "main"),
        ((TARGET,), (main_target(EgressPolicy.APPROVE),), "awaiting_approval", "main"),
        ((TARGET,), (main_target(EgressPolicy.ALLOW, "f2"),), "awaiting_approval", "main"),
        ((TARGET,), (), "awaiting_approval", "main"),
        ((TARGET,), (main_target(EgressPolicy.NEVER),), None, None),
        ((main_target(EgressPolicy.NEVER),), (TARGET,), None, None),
        ((), (), None, None),
    ],
)
async def test_what_a_crash_cut_short_leaves_under_the_stricter_of_both_policies(tmp_path, then, now, state, target):
    async with opened(tmp_path, targets=then) as road:
        road.engine.says(0.1)
        run = road.pipeline.run(road.request())
        await anext(run)  # the text is being made; the life of the daemon ends here
        road.policy = routing.Policy(0.5, now)
        assert await road.storage.recover(NOW, road.pipeline.decide_cut_short) == 1
        (record,) = await road.storage.journal.list()
        with contextlib.suppress(WrongState):
            await run.aclose()
        if state is None:
            assert (record.state, record.escalation) == (RequestState.FAILED, None)
            return
        row = record.escalation
        assert (row.state, row.target, row.target_fingerprint) == (state, target, "f1" if target else None)


@pytest.mark.parametrize(("now", "egress"), [((TARGET,), None), ((TARGET,), EgressPolicy.APPROVE)])
async def test_a_straight_request_cut_short_without_a_target_waits_for_a_person(tmp_path, now, egress):
    async with opened(tmp_path, targets=()) as road:
        road.engine.says(0.1)
        run = road.pipeline.run(road.request(route_mode=RouteMode.CLOUD_FIRST, egress=egress))
        await anext(run)
        road.policy = routing.Policy(0.5, now)
        await road.storage.recover(NOW, road.pipeline.decide_cut_short)
        (record,) = await road.storage.journal.list()
        with contextlib.suppress(WrongState):
            await run.aclose()
        assert (record.escalation.state, record.escalation.target) == ("awaiting_approval", None)


async def test_wait_is_joined_with_the_late_answer(tmp_path):
    async with opened(tmp_path) as road:
        road.engine.says(0.1)
        running = asyncio.create_task(road.run(on_low_confidence=OnLowConfidence.WAIT))
        claimed = None
        while claimed is None:
            await asyncio.sleep(0.01)
            claimed = await road.storage.outbox.claim("main", now_ms=NOW, lease_ms=1000)
        row, _ = claimed
        answer = CloudAnswer(text="late", finish_reason="stop", model="big")
        await road.storage.outbox.begin_send(row, body_sha256="0" * 64, body_bytes=10, now_ms=NOW)
        await road.storage.outbox.succeed(row, answer, now_ms=NOW)
        verdict = await running
        assert verdict.record.state is RequestState.RESOLVED
        assert verdict.record.cloud_answer.text == "late"


async def test_wait_ends_with_the_deadline(tmp_path):
    async with opened(tmp_path) as road:
        road.engine.says(0.1)
        verdict = await road.run(on_low_confidence=OnLowConfidence.WAIT, deadline_at_ms=NOW)
        assert verdict.record.state is RequestState.QUEUED


async def test_an_error_of_the_engine_itself_does_not_leave_the_request_running(tmp_path):
    async with opened(tmp_path) as road:
        road.engine.events = None  # iterating it raises TypeError
        with pytest.raises(TypeError):
            await road.run()
        assert await road.only_state() is RequestState.FAILED
