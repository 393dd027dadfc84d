"""What is learned of tasks and was not stored yet is stored the next time, also after storage has failed."""

import asyncio
import math

import msgspec
import pytest
from fakes import storage_values as values

from agent.confidence.calibration import Calibration, CalibrationKey, Report
from agent.confidence.certify import Certificate
from agent.confidence.maps import ProbabilityMap
from agent.confidence.monitor import Monitor
from agent.errors import DiskFull
from agent.task_book import TaskBook
from agent.task_folder import TaskFolder
from agent.task_memory import TaskMemory


class Store:
    """Keeps what it is given; ``full`` fails the next write, ``during`` happens in the middle of one."""

    def __init__(self):
        self.kept = {}
        self.full = False
        self.during = lambda: None

    async def put_monitors(self, bodies, *, broken, now_ms):
        await self._put(bodies, Monitor)

    async def put_means(self, bodies):
        await self._put(bodies, None)

    async def _put(self, bodies, kind):
        await asyncio.sleep(0)
        self.during()
        if self.full:
            raise DiskFull("no space is left")
        self.kept |= {(kind, task): body for task, body in bodies.items()}


@pytest.fixture
def memory(tmp_path):
    (tmp_path / "mail.toml").write_text('name = "mail"\nlabels = ["a", "b"]\n')
    return TaskMemory(TaskBook(TaskFolder(tmp_path)), Store(), lambda: 1)


def seen(memory, inputs):
    """What a monitor and the mean label scores of a task are after some inputs."""
    memory.book.monitors._keep(
        Monitor(task="mail", calibration="c"), Monitor(task="mail", calibration="c", inputs=inputs)
    )
    memory.book.observe("mail", ["a", "b"], [math.log(0.5)] * 2, "d" * 64)


async def test_what_could_not_be_stored_is_stored_later(memory):
    seen(memory, 7)
    memory._store.full = True
    with pytest.raises(DiskFull):
        await memory.save()
    memory._store.full = False
    await memory.save()
    assert msgspec.msgpack.decode(memory._store.kept[Monitor, "mail"], type=Monitor).inputs == 7
    assert (None, "mail") in memory._store.kept
    memory._store.kept.clear()
    await memory.save()
    assert not memory._store.kept


async def test_what_changes_while_it_is_stored_is_stored_again(memory):
    seen(memory, 7)
    memory._store.during = lambda: seen(memory, 8)
    await memory.save()
    memory._store.during = lambda: None
    await memory.save()
    assert msgspec.msgpack.decode(memory._store.kept[Monitor, "mail"], type=Monitor).inputs == 8


def calibration(number, model):
    """A promise that was made with a model."""
    report = Report(
        examples=300, right=280, no_signal=0, served=250, errors=8, coverage_low=0.8, coverage_high=0.9,
        expected_error=0.0, expected_error_floor=0.0,
    )  # fmt: skip
    return Calibration(
        id=number,
        task="mail",
        key=CalibrationKey(task_digest="t", model="m", model_digest=model, runtime="r", estimator="e"),
        map=ProbabilityMap(),
        threshold=0.6,
        target="accuracy",
        value=0.9,
        certificate=Certificate.PAC,
        sentence="",
        report=report,
    )


@pytest.mark.parametrize("tightened", [False, True])
async def test_a_promise_that_was_seen_broken_never_holds_again(tmp_path, tightened):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mail.toml").write_text('name = "mail"\nlabels = ["a", "b"]\n')
    storage = await values.opened(tmp_path)
    try:
        memory = TaskMemory(TaskBook(TaskFolder(tmp_path / "tasks")), storage.tasks, lambda: values.NOW)
        await memory.certify(calibration("old", "model a"))
        watched = Monitor(task="mail", calibration="old", tightened=tightened)
        memory.book.monitors._keep(watched, watched)
        await memory.save()
        await memory.certify(calibration("new", "model b"))
        another = Monitor(task="mail", calibration="new", inputs=1)  # in place of the one that knew
        memory.book.monitors._keep(another, another)
        await memory.save()
        found = await memory.calibrate_again("mail", "t", "model a")
        assert (found and found.id) == (None if tightened else "old")
        assert (await memory.calibrate_again("mail", "t", "model b")).id == "new"
    finally:
        await storage.close()
