"""What is learned of tasks and was not stored yet is stored the next time, also after storage has failed."""

import asyncio
import math

import msgspec
import pytest

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

    async def put_monitors(self, bodies):
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
