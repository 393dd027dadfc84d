"""The storage thread: group commit, isolation between callers, a full and a failing disk."""

import asyncio

import pytest
from fakes import storage_values as values
from fakes.storage_values import NOW

from agent.errors import DiskFull, StorageError
from agent.settings import QueueSettings
from agent.storage.ballast import Ballast


@pytest.fixture
async def storage(tmp_path):
    opened = await values.opened(tmp_path)
    await opened.db.write(lambda connection: connection.execute("CREATE TABLE t (a INTEGER UNIQUE, b TEXT)").rowcount)
    yield opened
    await opened.close()


def put(number, text=""):
    return lambda connection: connection.execute(f"INSERT INTO t VALUES ({number}, '{text}')").rowcount


async def stored(storage):
    return await storage.db.read(
        lambda connection: [row["a"] for row in connection.execute("SELECT a FROM t ORDER BY a").fetchall()]
    )


async def test_one_callers_error_is_its_own(storage):
    outcomes = await asyncio.gather(*(storage.db.write(put(n % 7)) for n in range(10)), return_exceptions=True)
    assert [isinstance(outcome, StorageError) for outcome in outcomes] == [False] * 7 + [True] * 3
    assert await stored(storage) == list(range(7))


async def test_half_a_work_is_undone(storage):
    def half(connection):
        put(1)(connection)
        raise ValueError("changed my mind")

    outcomes = await asyncio.gather(
        storage.db.write(put(0)), storage.db.write(half), storage.db.write(put(2)), return_exceptions=True
    )
    assert isinstance(outcomes[1], ValueError)
    assert await stored(storage) == [0, 2]


async def test_writes_that_wait_share_a_commit(storage):
    gate = asyncio.Event()
    loop = asyncio.get_running_loop()
    import threading

    block = threading.Event()

    def hold(connection):
        loop.call_soon_threadsafe(gate.set)
        assert block.wait(10)

    statements = []
    await storage.db.read(lambda connection: connection.set_trace_callback(statements.append))
    first = asyncio.create_task(storage.db.write(hold))
    await gate.wait()
    rest = [asyncio.create_task(storage.db.write(put(n))) for n in range(50)]
    await asyncio.sleep(0)
    block.set()
    await asyncio.gather(first, *rest)
    assert statements.count("COMMIT") == 2
    assert len(await stored(storage)) == 50


async def test_a_caller_that_leaves_does_not_undo_its_write(storage):
    task = asyncio.create_task(storage.db.write(put(1)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await stored(storage) == [1]


async def test_a_full_database_refuses_and_goes_on(storage):
    await storage.db.read(lambda connection: connection.execute("PRAGMA max_page_count = 60").fetchall())
    outcomes = await asyncio.gather(
        storage.db.write(put(1)),
        storage.db.write(put(2, "x" * 500_000)),
        storage.db.write(put(3)),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [int, DiskFull, int]
    assert await stored(storage) == [1, 3]
    await storage.db.read(lambda connection: connection.execute("PRAGMA max_page_count = 100000").fetchall())
    await storage.db.write(put(2, "x" * 500_000))


async def test_after_an_io_error_the_database_is_opened_anew(storage):
    def broken(connection):
        error = values.sqlcipher3.dbapi2.OperationalError("disk I/O error")
        error.sqlite_errorcode = 10  # SQLITE_IOERR
        raise error

    await storage.db.write(put(1))
    with pytest.raises(StorageError, match="device failed"):
        await storage.db.write(broken)
    await storage.db.write(put(2))
    assert await stored(storage) == [1, 2]


async def test_commits_survive_a_power_cut_by_settings(storage):
    def read(connection):
        return {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "secure_delete", "foreign_keys")
        }

    assert await storage.db.read(read) == {
        "journal_mode": "wal", "synchronous": 2, "secure_delete": 1, "foreign_keys": 1,
    }  # fmt: skip


class TestBallast:
    SIZE = 1 << 20

    def test_takes_and_gives_back_real_space(self, tmp_path):
        ballast = Ballast(tmp_path / "ballast", self.SIZE)
        assert ballast.hold()
        assert (tmp_path / "ballast").stat().st_blocks * 512 >= self.SIZE
        assert ballast.release()
        assert not (tmp_path / "ballast").exists()
        assert not ballast.release()

    def test_is_found_again_after_a_restart(self, tmp_path):
        Ballast(tmp_path / "ballast", self.SIZE).hold()
        again = Ballast(tmp_path / "ballast", self.SIZE)
        assert again.hold()
        assert again.release()

    async def test_a_full_disk_is_for_ending_requests_not_for_new_ones(self, tmp_path, monkeypatch):
        queue = QueueSettings(ballast_bytes=self.SIZE)
        storage = await values.opened(tmp_path, queue=queue)
        await values.enqueue(storage)
        free = [0]
        monkeypatch.setattr(
            "agent.storage.ballast.shutil.disk_usage", lambda path: type("Usage", (), {"free": free[0]})
        )
        storage.db._ballast.release()
        with pytest.raises(DiskFull):
            await storage.journal.open(values.request(), now_ms=NOW)
        row, _ = await storage.outbox.claim("cloud", now_ms=NOW, lease_ms=1)
        await storage.outbox.reject(row, reason="400", left=False, now_ms=NOW)
        assert await storage.outbox.purge(now_ms=NOW) == 1
        free[0] = 4 * self.SIZE
        await storage.journal.open(values.request(), now_ms=NOW)
        assert storage.db._ballast.held
        await storage.close()
