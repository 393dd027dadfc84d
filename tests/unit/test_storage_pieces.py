"""Large files and batches go in many small transactions, and in the end nothing of them is left."""

import pytest
from fakes import storage_values as values

from agent.storage import batch_store, file_store
from agent.storage.batch_store import Batch, BatchBody, Line

NOW, DAY = values.NOW, 86_400_000
LINES = 5


@pytest.fixture
async def storage(tmp_path, monkeypatch):
    for module, name in (
        (batch_store, "DROPPED_LINES"),
        (file_store, "DROPPED_ANSWERS"),
        (file_store, "DROPPED_CHUNKS"),
    ):
        monkeypatch.setattr(module, name, 2)
    storage = await values.opened(tmp_path)
    yield storage
    await storage.close()


@pytest.fixture
def largest(storage, monkeypatch):
    """The most lines and pieces of files that one transaction changed."""
    write, most = storage.db.write, [0]

    async def watched(work, **options):
        def counted(connection):
            tables = ("batch_lines WHERE answer <> x''", "file_chunks")
            before = [count(connection, table) for table in tables]
            value = work(connection)
            most.append(sum(before) - sum(count(connection, table) for table in tables))
            return value

        return await write(counted, **options)

    monkeypatch.setattr(storage.db, "write", watched)
    return lambda: max(most)


def count(connection, table):
    return connection.execute(f"SELECT count(*) AS n FROM {table}").fetchone()["n"]


async def left(storage, table):
    return await storage.db.read(lambda connection: count(connection, table))


async def uploaded(storage):
    file_id = await storage.files.begin(now_ms=NOW)
    for number in range(LINES):
        await storage.files.append(file_id, number, b"x" * 10)
    await storage.files.ready(file_id, filename="f", sha256="ab", key="k", keep_s=3600, now_ms=NOW)
    return file_id


async def answered(storage):
    """A batch that has ended, whose input is gone."""
    file_id = await uploaded(storage)
    body = BatchBody(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")
    batch = Batch(id="batch_a", status="validating", body=body, created_at_ms=NOW, expires_at_ms=NOW + DAY)
    await storage.batches.create(batch, key=None, sha256="ab")
    await storage.batches.add_lines(batch.id, [Line(n, f"line-{n}", None, b"{}") for n in range(1, LINES + 1)])
    await storage.batches.begin(batch.id, LINES, now_ms=NOW)
    for number in range(1, LINES + 1):
        await storage.batches.answer(batch.id, number, 200, b"an answer")
    await storage.batches.end(batch, "completed", now_ms=NOW, keep_s=60)
    return await storage.batches.get(batch.id)


async def test_an_upload(storage, largest):
    await storage.files.delete(await uploaded(storage))
    assert await left(storage, "files") == await left(storage, "file_chunks") == 0
    assert largest() == 2


async def test_one_whose_removal_was_cut_short_is_not_seen_and_goes_at_the_next_start(storage, monkeypatch):
    file_id = await uploaded(storage)

    async def cut(*_):
        raise ConnectionError

    monkeypatch.setattr(storage.files, "drop", cut)
    with pytest.raises(ConnectionError):
        await storage.files.delete(file_id)
    monkeypatch.undo()
    assert await storage.files.list(purpose=None, after=None, limit=10, newest_first=True) == []
    await storage.files.recover()
    assert await left(storage, "file_chunks") == 0


async def test_answers_that_are_deleted(storage, largest):
    batch = await answered(storage)
    await storage.files.delete(batch.output_file_id)
    assert await left(storage, "batch_lines WHERE answer <> x''") == 0
    assert await left(storage, "batch_lines") == LINES, "that a line was answered stays"
    assert largest() == 2


async def test_a_batch_that_ended_long_ago(storage, largest):
    await answered(storage)
    await storage.maintain(NOW + 400 * DAY)
    for table in ("batches", "batch_lines", "files", "file_chunks"):
        assert await left(storage, table) == 0, table
    assert largest() == 2
