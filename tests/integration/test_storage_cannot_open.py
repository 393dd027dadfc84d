"""What cannot be opened says so in one line, exits, and leaves the files as they were."""

import hashlib
import os
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from fakes import storage_values as values
from fakes.storage_values import KEEP, NOW, QUEUE

from agent.errors import (
    AlreadyRunning,
    ForeignDatabase,
    KeyProblem,
    NewerSchema,
    SqliteTooOld,
    StorageCorrupt,
    StorageError,
    WrongKey,
)
from agent.storage import keys, open_storage
from agent.storage.connection import DATABASE_NAME

REPO = Path(__file__).resolve().parents[2]


async def refuses(data, error):
    """Open, expect ``error`` in one line, and that the database file is untouched."""
    path = data / DATABASE_NAME
    before = hashlib.sha256(path.read_bytes()).digest() if path.is_file() else None
    with pytest.raises(error) as raised:
        await open_storage(data, QUEUE, KEEP, now_ms=NOW)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code != 0
    assert (hashlib.sha256(path.read_bytes()).digest() if path.is_file() else None) == before
    return str(raised.value)


@pytest.fixture
def data(tmp_path):
    return values.prepared_dir(tmp_path)


async def test_the_first_start_makes_everything_private(tmp_path):
    data = tmp_path / "new" / "data"
    storage = await open_storage(data, QUEUE, KEEP, now_ms=NOW)
    assert storage.key_place == "file"
    await values.enqueue(storage)
    for path in [data, *data.iterdir()]:
        assert path.stat().st_mode & 0o077 == 0, path
    await storage.close()
    again = await open_storage(data, QUEUE, KEEP, now_ms=NOW)
    assert (await again.journal.counts())["queued"] == 1
    await again.close()


async def test_wrong_key(data):
    keys.write_private(data / "key", os.urandom(32))
    assert "does not open" in await refuses(data, WrongKey)


async def test_lost_key(data):
    (data / "key").unlink()
    await refuses(data, KeyProblem)


async def test_an_unencrypted_database(data):
    (data / DATABASE_NAME).unlink()
    with sqlite3.connect(data / DATABASE_NAME) as plain:
        plain.execute("CREATE TABLE notes (text)")
    plain.close()
    assert "unencrypted" in await refuses(data, ForeignDatabase)


async def test_a_database_of_another_program_under_our_key(data):
    connection = values.raw_connection(data)
    connection.execute("PRAGMA application_id = 7")
    connection.close()
    assert "another program" in await refuses(data, ForeignDatabase)


async def test_a_newer_schema(data):
    connection = values.raw_connection(data)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert "99" in await refuses(data, NewerSchema)


async def test_random_bytes(data):
    (data / DATABASE_NAME).write_bytes(os.urandom(16_384))
    await refuses(data, WrongKey)


async def test_a_damaged_page_is_told_when_it_is_read(data):
    storage = await open_storage(data, QUEUE, KEEP, now_ms=NOW)
    await values.enqueue(storage, text="x" * 50_000)
    await storage.close()
    path = data / DATABASE_NAME
    content = bytearray(path.read_bytes())
    for page in range(8, len(content) // 4096):
        content[page * 4096 + 100] ^= 1
    path.write_bytes(content)

    async def read_everything():
        storage = await open_storage(data, QUEUE, KEEP, now_ms=NOW)
        try:
            for row in await storage.outbox.list():
                await storage.journal.get(row.request_id)
        finally:
            await storage.close()

    with pytest.raises(StorageCorrupt, match="backup"):
        await read_everything()


async def test_a_second_instance_is_told_who_runs(data):
    first = await open_storage(data, QUEUE, KEEP, now_ms=NOW)
    with pytest.raises(AlreadyRunning, match=f"process {os.getpid()} "):
        await open_storage(data, QUEUE, KEEP, now_ms=NOW)
    await values.enqueue(first)
    await first.close()
    await (await open_storage(data, QUEUE, KEEP, now_ms=NOW)).close()


async def test_a_failed_open_gives_the_lock_back(data):
    key = (data / "key").read_bytes()
    keys.write_private(data / "key", os.urandom(32))
    await refuses(data, WrongKey)
    keys.write_private(data / "key", key)
    await (await open_storage(data, QUEUE, KEEP, now_ms=NOW)).close()


async def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(StorageError, match="data"):
        await open_storage(tmp_path / "data", QUEUE, KEEP, now_ms=NOW)


async def test_sqlite_that_can_corrupt(data, monkeypatch):
    monkeypatch.setattr("agent.storage.connection.sqlcipher.sqlite_version_info", (3, 51, 2))
    assert "3.51.3" in await refuses(data, SqliteTooOld)


AS_NOBODY = textwrap.dedent("""
    import asyncio, os, sys
    from pathlib import Path
    from agent.errors import OutriderError
    from agent.settings import QueueSettings, RetentionSettings
    from agent.storage import open_storage
    os.setuid(65534)
    try:
        asyncio.run(open_storage(Path(sys.argv[1]), QueueSettings(ballast_bytes=0), RetentionSettings(), now_ms=1))
    except OutriderError as error:
        print(error)
        sys.exit(error.exit_code)
""")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("place", ["taken", "parent"])
def test_no_write_permission(tmp_path, place):
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    data = values.prepared_dir(tmp_path) if place == "taken" else tmp_path / "new"
    child = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(data)], cwd=REPO, capture_output=True, text=True, check=False
    )
    assert child.returncode == StorageError.exit_code, child.stderr
    assert "write permission" in child.stdout
    assert child.stdout.count("\n") == 1


FILL = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    sys.path.insert(0, "tests")
    from fakes import storage_values as values
    from fakes.storage_values import NOW
    from agent.errors import DiskFull
    from agent.settings import QueueSettings
    from agent.records import CloudAnswer

    def fill(path):
        with path.open("wb", buffering=0) as file:
            for size in (1 << 20, 4096):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    pass

    async def main():
        storage = await values.opened(Path(sys.argv[1]), queue=QueueSettings(ballast_bytes=8 << 20))
        accepted = [(await values.enqueue(storage, text="x" * 40_000)).id for _ in range(20)]
        try:
            while True:
                await storage.journal.open(values.request("y" * 200_000), now_ms=NOW)
        except DiskFull:
            pass
        assert (storage.db.path.parent / "ballast").exists()
        fill(Path(sys.argv[1]) / "somebody else's file")
        # A send under way can be settled ...
        row, _ = await storage.outbox.claim("cloud", now_ms=NOW, lease_ms=1000)
        await storage.outbox.begin_send(row, body_sha256="ab", body_bytes=1, now_ms=NOW)
        await storage.outbox.succeed(row, CloudAnswer(text="late", finish_reason="stop", model="m"), now_ms=NOW)
        assert not (storage.db.path.parent / "ballast").exists()
        # ... new requests are refused ...
        try:
            await storage.journal.open(values.request(), now_ms=NOW)
        except DiskFull as error:
            assert "\\n" not in str(error)
        else:
            sys.exit("a new request was taken on a full disk")
        # ... and rows can go.
        for record in set(accepted) - {row.request_id}:
            assert (await storage.journal.get(record)).state == "queued"
            await storage.outbox.cancel(record, now_ms=NOW)
        assert await storage.outbox.purge(now_ms=NOW, unfetched=True) == 20
        await storage.recover(NOW, lambda request, accepted, generation: values.REFUSED)
        await storage.maintain(NOW + values.DAY)
        # The space of what was purged is reused, without a restart and with the disk still full.
        await storage.journal.open(values.request(), now_ms=NOW)
        await storage.close()

    asyncio.run(main())
""")


def test_a_full_disk_loses_nothing_and_still_ends_requests(tmp_path):
    mount = 'mount -t tmpfs -o size=32m tmpfs "$1" && exec "$2" -c "$3" "$1"'
    probe = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("mounting needs root")
    child = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, "sh", str(tmp_path), sys.executable, FILL],
        cwd=REPO, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr


class TestMigration:
    async def test_an_older_database_is_brought_up_and_kept(self, data, monkeypatch):
        from agent.storage import connection, migrations

        storage = await open_storage(data, QUEUE, KEEP, now_ms=NOW)
        record = await values.enqueue(storage)
        await storage.close()
        key = keys.load(data, {}).material
        path = data / DATABASE_NAME
        assert migrations.migrate(path, key) == []
        now = connection.SCHEMA_VERSION
        for module in (connection, migrations):
            monkeypatch.setattr(module, "SCHEMA_VERSION", now + 1)
        monkeypatch.setattr(
            migrations, "MIGRATIONS", [*migrations.MIGRATIONS, lambda db, key: db.execute("CREATE TABLE later (a)")]
        )
        assert migrations.migrate(path, key) == [now + 1]
        kept = path.with_name(f"{DATABASE_NAME}.schema-{now}")
        old = connection.connect(kept, key)
        assert old.execute("PRAGMA user_version").fetchone()[0] == now
        assert old.execute("SELECT id FROM requests").fetchone()[0] == record.id
        old.close()

    def test_a_step_that_fails_leaves_the_version_as_it_was(self, data, monkeypatch):
        from agent.storage import connection, migrations

        def fails(db, key):
            db.execute("CREATE TABLE half (a)")
            raise ZeroDivisionError

        now = connection.SCHEMA_VERSION
        for module in (connection, migrations):
            monkeypatch.setattr(module, "SCHEMA_VERSION", now + 1)
        monkeypatch.setattr(migrations, "MIGRATIONS", [*migrations.MIGRATIONS, fails])
        key = keys.load(data, {}).material
        with pytest.raises(ZeroDivisionError):
            migrations.migrate(data / DATABASE_NAME, key)
        opened = connection.connect(data / DATABASE_NAME, key)
        assert opened.execute("PRAGMA user_version").fetchone()[0] == now
        assert opened.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'half'").fetchone()[0] == 0
        opened.close()

    def test_there_is_one_step_for_each_version(self):
        from agent.storage import connection, migrations

        assert len(migrations.MIGRATIONS) == connection.SCHEMA_VERSION

    def test_the_child_gets_the_key_by_pipe_and_says_what_is_wrong(self, data):
        child = subprocess.run(
            [sys.executable, "-m", "agent", "migrate", str(data / DATABASE_NAME)],
            cwd=REPO, input=os.urandom(32), capture_output=True, check=False,
        )  # fmt: skip
        assert child.returncode == WrongKey.exit_code
        assert b"does not open" in child.stderr
        assert child.stderr.count(b"\n") == 1
