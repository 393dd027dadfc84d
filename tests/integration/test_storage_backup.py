"""Backups: consistent while the database is used, encrypted, and able to come back."""

import asyncio

import pytest
from fakes import storage_values as values
from fakes.storage_values import KEEP, NOW, QUEUE

from agent.errors import ForeignDatabase, KeyProblem, StorageCorrupt, StorageError, WrongKey
from agent.storage import keys, open_storage
from agent.storage.backup import backup, restore
from agent.storage.connection import DATABASE_NAME

PASSPHRASE = "correct horse 'battery' staple"


@pytest.fixture
async def filled(tmp_path):
    data = values.prepared_dir(tmp_path)
    storage = await open_storage(data, QUEUE, KEEP, now_ms=NOW)
    for n in range(5):
        await values.enqueue(storage, now_ms=NOW + n)
    await storage.close()
    return data


async def queued_in(data):
    storage = await open_storage(data, QUEUE, KEEP, now_ms=NOW)
    try:
        assert await storage.egress_log.verify() is None
        return (await storage.journal.counts())["queued"]
    finally:
        await storage.close()


async def test_while_the_daemon_writes(filled, tmp_path):
    storage = await open_storage(filled, QUEUE, KEEP, now_ms=NOW)
    stop = asyncio.Event()
    acknowledged = []

    async def write():
        while not stop.is_set():
            acknowledged.append((await values.enqueue(storage)).id)

    writer = asyncio.create_task(write())
    while len(acknowledged) < 3:
        await asyncio.sleep(0.001)
    before = len(acknowledged)
    report = await asyncio.to_thread(backup, filled, tmp_path / "copy")
    stop.set()
    await writer
    await storage.close()
    assert report.key_path is None
    assert report.bytes == (tmp_path / "copy").stat().st_size
    assert b"Vanuatu" not in (tmp_path / "copy").read_bytes()
    restore(tmp_path / "copy", filled)
    assert before + 5 <= await queued_in(filled) <= len(acknowledged) + 5


async def test_comes_back_beside_what_was_there(filled, tmp_path):
    backup(filled, tmp_path / "copy")
    storage = await open_storage(filled, QUEUE, KEEP, now_ms=NOW)
    await values.enqueue(storage)
    await storage.close()
    kept = restore(tmp_path / "copy", filled)
    assert await queued_in(filled) == 5
    kept.rename(filled / DATABASE_NAME)
    assert await queued_in(filled) == 6


async def test_without_its_key_a_copy_is_of_no_use_elsewhere(filled, tmp_path):
    backup(filled, tmp_path / "copy")
    other = values.prepared_dir(tmp_path)
    keys.write_private(other / "key", bytes(32))
    with pytest.raises(WrongKey):
        restore(tmp_path / "copy", other)
    with pytest.raises(KeyProblem, match="without its key"):
        restore(tmp_path / "copy", other, passphrase=PASSPHRASE)


async def test_with_its_key_it_moves_to_another_device(filled, tmp_path):
    report = backup(filled, tmp_path / "copy", passphrase=PASSPHRASE)
    wrapped = (tmp_path / "copy.key").read_bytes()
    assert report.key_path == str(tmp_path / "copy.key")
    material = keys.load(filled, {}).material
    assert material not in wrapped
    assert material.hex().encode() not in wrapped
    assert (tmp_path / "copy.key").stat().st_mode & 0o077 == 0
    elsewhere = tmp_path / "elsewhere"
    with pytest.raises(WrongKey, match="passphrase"):
        restore(tmp_path / "copy", elsewhere, passphrase="wrong horse battery")
    assert restore(tmp_path / "copy", elsewhere, passphrase=PASSPHRASE) is None
    assert await queued_in(elsewhere) == 5


def test_a_short_passphrase_is_refused(filled, tmp_path):
    with pytest.raises(KeyProblem, match="too short"):
        backup(filled, tmp_path / "copy", passphrase="horse")
    assert not (tmp_path / "copy").exists()


def test_nothing_is_overwritten(filled, tmp_path):
    (tmp_path / "copy").write_text("mine")
    with pytest.raises(StorageError, match="exists already"):
        backup(filled, tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "mine"


async def test_a_damaged_backup_changes_nothing(filled, tmp_path):
    backup(filled, tmp_path / "copy")
    content = bytearray((tmp_path / "copy").read_bytes())
    content[5 * 4096 + 77] ^= 1
    (tmp_path / "copy").write_bytes(content)
    with pytest.raises(StorageCorrupt):
        restore(tmp_path / "copy", filled)
    assert await queued_in(filled) == 5
    assert [path.name for path in filled.iterdir() if path.name.startswith(".")] == []


def test_something_else_is_not_a_backup(filled, tmp_path):
    (tmp_path / "copy").touch()
    with pytest.raises(ForeignDatabase):
        restore(tmp_path / "copy", filled)
    with pytest.raises(StorageError, match="does not exist"):
        restore(tmp_path / "nothing", filled)


def test_a_folder_that_is_not_there(filled, tmp_path):
    with pytest.raises(StorageError):
        backup(filled, tmp_path / "no" / "such" / "folder")
