"""Backups: consistent while the database is used, encrypted, and able to come back."""

import asyncio

import pytest
from click.testing import CliRunner
from fakes import storage_values as values
from fakes.old_database import old_database
from fakes.storage_values import KEEP, NOW, QUEUE

from agent.cli.main import cli
from agent.errors import ForeignDatabase, KeyProblem, StorageCorrupt, StorageError, WrongKey
from agent.records import Accepted, CloudAnswer, EscalationState, RequestState
from agent.storage import keys, open_storage
from agent.storage.backup import backup, restore
from agent.storage.connection import DATABASE_NAME, connect
from agent.types import EgressPolicy

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
    restore(tmp_path / "copy", filled, now_ms=NOW)
    assert before + 5 <= await queued_in(filled) <= len(acknowledged) + 5


async def test_comes_back_beside_what_was_there(filled, tmp_path):
    backup(filled, tmp_path / "copy")
    storage = await open_storage(filled, QUEUE, KEEP, now_ms=NOW)
    await values.enqueue(storage)
    await storage.close()
    kept = restore(tmp_path / "copy", filled, now_ms=NOW).kept
    assert await queued_in(filled) == 5
    kept.rename(filled / DATABASE_NAME)
    assert await queued_in(filled) == 6


async def test_a_backup_of_an_earlier_release_comes_back_under_this_one(tmp_path, monkeypatch):
    data = tmp_path / "data"
    ids = old_database(data, 3, monkeypatch)
    backup(data, tmp_path / "copy")
    before = (tmp_path / "copy").read_bytes()
    assert restore(tmp_path / "copy", data, now_ms=NOW).reconciled.held == 3
    assert (tmp_path / "copy").read_bytes() == before
    assert not [path for path in data.iterdir() if path.name.startswith(".")]
    storage = await open_storage(data, QUEUE, KEEP, now_ms=NOW)
    rows = await storage.outbox.list(EscalationState.AWAITING_APPROVAL)
    assert ({row.request_id for row in rows}, {row.reason for row in rows}) == (ids, {"restored"})
    await storage.close()


async def test_without_its_key_a_copy_is_of_no_use_elsewhere(filled, tmp_path):
    backup(filled, tmp_path / "copy")
    other = values.prepared_dir(tmp_path)
    keys.write_private(other / "key", bytes(32))
    with pytest.raises(WrongKey):
        restore(tmp_path / "copy", other, now_ms=NOW)
    with pytest.raises(KeyProblem, match="without its key"):
        restore(tmp_path / "copy", other, now_ms=NOW, passphrase=PASSPHRASE)


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
        restore(tmp_path / "copy", elsewhere, now_ms=NOW, passphrase="wrong horse battery")
    assert restore(tmp_path / "copy", elsewhere, now_ms=NOW, passphrase=PASSPHRASE).kept is None
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
        restore(tmp_path / "copy", filled, now_ms=NOW)
    assert await queued_in(filled) == 5
    assert [path.name for path in filled.iterdir() if path.name.startswith(".")] == []


def test_something_else_is_not_a_backup(filled, tmp_path):
    (tmp_path / "copy").touch()
    with pytest.raises(ForeignDatabase):
        restore(tmp_path / "copy", filled, now_ms=NOW)
    with pytest.raises(StorageError, match="does not exist"):
        restore(tmp_path / "nothing", filled, now_ms=NOW)


def test_a_folder_that_is_not_there(filled, tmp_path):
    with pytest.raises(StorageError):
        backup(filled, tmp_path / "no" / "such" / "folder")


LATER = NOW + 1000
ANSWER = CloudAnswer(text="late", finish_reason="stop", model="big")


async def send(storage, *, finish=True):
    """Send the oldest row that may leave; return it."""
    row, _ = await storage.outbox.claim("cloud", now_ms=LATER, lease_ms=1000)
    await storage.outbox.begin_send(row, body_sha256="ab" * 32, body_bytes=100, now_ms=LATER)
    if finish:
        await storage.outbox.succeed(row, ANSWER, now_ms=LATER)
    return row


class TestWhatHappenedSince:
    async def test_nothing_leaves_by_itself_that_was_open_then(self, filled, tmp_path):
        backup(filled, tmp_path / "copy")
        storage = await open_storage(filled, QUEUE, KEEP, now_ms=NOW)
        sent = await send(storage)
        cancelled = (await storage.outbox.list(EscalationState.PENDING))[0]
        await storage.outbox.cancel(cancelled.id, now_ms=LATER)
        await storage.close()
        report = restore(tmp_path / "copy", filled, now_ms=LATER)
        assert report.reconciled.held == 5
        storage = await open_storage(filled, QUEUE, KEEP, now_ms=LATER)
        try:
            assert await storage.outbox.claim("cloud", now_ms=LATER, lease_ms=1000) is None
            for row in (sent, cancelled):
                held = await storage.outbox.get(row.id)
                assert (held.state, held.reason) == ("awaiting_approval", "restored")
            assert (await storage.journal.get(sent.request_id)).state is RequestState.QUEUED
        finally:
            await storage.close()

    async def test_what_left_since_stays_in_the_log(self, filled, tmp_path):
        storage = await open_storage(filled, QUEUE, KEEP, now_ms=NOW)
        await send(storage)
        backup(filled, tmp_path / "copy")
        sent = [await send(storage), await send(storage)]
        before = await storage.egress_log.list()
        await storage.close()
        report = restore(tmp_path / "copy", filled, now_ms=LATER)
        assert (report.reconciled.carried, report.reconciled.log_problem) == (2, None)
        again = restore(tmp_path / "copy", filled, now_ms=LATER)  # nothing is told twice
        assert again.reconciled.carried == 2
        storage = await open_storage(filled, QUEUE, KEEP, now_ms=LATER)
        try:
            assert await storage.egress_log.list() == before
            assert {row.id for row in sent} <= {row.escalation_id for row in before}
            assert await storage.egress_log.verify() is None
        finally:
            await storage.close()

    @pytest.mark.parametrize("finished_since", [True, False])
    async def test_what_was_on_its_way_when_the_backup_was_made(self, filled, tmp_path, finished_since):
        storage = await open_storage(filled, QUEUE, KEEP, now_ms=NOW)
        row = await send(storage, finish=False)
        backup(filled, tmp_path / "copy")
        if finished_since:
            await storage.outbox.succeed(row, ANSWER, now_ms=LATER)
        await storage.close()
        restore(tmp_path / "copy", filled, now_ms=LATER + 1)
        storage = await open_storage(filled, QUEUE, KEEP, now_ms=LATER + 2)
        try:
            told = [(left.escalation_id, left.outcome) for left in await storage.egress_log.list()]
            assert told == [(row.id, "succeeded" if finished_since else "unknown")]
            assert (await storage.outbox.get(row.id)).state is EscalationState.AWAITING_APPROVAL
            assert [attempt.outcome for attempt in await storage.outbox.attempts(row.id)] == ["unknown"]
        finally:
            await storage.close()

    async def test_a_request_that_was_running_will_wait_for_a_person(self, filled, tmp_path):
        storage = await open_storage(filled, QUEUE, KEEP, now_ms=NOW)
        asked = values.request()
        allowed = Accepted(egress=EgressPolicy.ALLOW, target="cloud", target_fingerprint="of cloud")
        await storage.journal.open(asked, allowed, now_ms=NOW)
        await storage.close()
        backup(filled, tmp_path / "copy")
        assert restore(tmp_path / "copy", filled, now_ms=LATER).reconciled.held == 6
        storage = await open_storage(filled, QUEUE, KEEP, now_ms=LATER)
        try:
            assert await storage.journal.running() == [(asked, Accepted(egress=EgressPolicy.APPROVE))]
        finally:
            await storage.close()

    async def test_a_database_that_cannot_be_read_is_told_of(self, filled, tmp_path):
        backup(filled, tmp_path / "copy")
        (filled / DATABASE_NAME).write_bytes(b"x" * 8192)
        report = restore(tmp_path / "copy", filled, now_ms=LATER)
        assert report.kept.read_bytes() == b"x" * 8192
        assert str(filled / DATABASE_NAME) in report.reconciled.log_problem
        assert await queued_in(filled) == 5

    async def test_a_log_that_was_changed_is_not_made_good(self, filled, tmp_path):
        backup(filled, tmp_path / "copy")
        storage = await open_storage(filled, QUEUE, KEEP, now_ms=NOW)
        for _ in range(3):
            await send(storage)
        await storage.close()
        stranger = values.raw_connection(filled)
        stranger.execute("DROP TRIGGER egress_log_no_update")
        stranger.execute("UPDATE egress_log SET bytes = 1 WHERE id = 2")
        stranger.close()
        reconciled = restore(tmp_path / "copy", filled, now_ms=LATER).reconciled
        assert reconciled.carried == 1
        assert "row 2" in reconciled.log_problem

    async def test_the_key_of_what_was_there_is_kept_with_it(self, filled, tmp_path):
        backup(filled, tmp_path / "copy", passphrase=PASSPHRASE)
        keys.rotate(filled, {})
        storage = await open_storage(filled, QUEUE, KEEP, now_ms=NOW)
        sent = await send(storage)
        await storage.close()
        report = restore(tmp_path / "copy", filled, now_ms=LATER, passphrase=PASSPHRASE)
        connect(report.kept, report.kept_key.read_bytes()).close()
        storage = await open_storage(filled, QUEUE, KEEP, now_ms=LATER)
        assert [row.escalation_id for row in await storage.egress_log.list()] == [sent.id]
        await storage.close()


class TestOnANewMachine:
    def test_it_is_told_where_a_key_can_come_from(self, filled, tmp_path):
        backup(filled, tmp_path / "copy")
        with pytest.raises(KeyProblem, match=r"--with-key.*key recovery --restore"):
            restore(tmp_path / "copy", tmp_path / "fresh", now_ms=NOW)
        assert not (tmp_path / "fresh").exists()

    def test_it_is_told_so_beside_a_database_of_another_key(self, filled, tmp_path):
        backup(filled, tmp_path / "copy")
        keys.rotate(filled, {})
        with pytest.raises(WrongKey, match=r"--with-key.*key recovery --restore"):
            restore(tmp_path / "copy", filled, now_ms=NOW)

    async def test_the_printed_key_first_then_the_copy(self, filled, tmp_path):
        backup(filled, tmp_path / "copy")
        environment = {"OUTRIDER_DATA_DIR": str(tmp_path / "fresh"), "HOME": str(tmp_path)}
        code = keys.recovery_code(keys.load(filled, {}))
        put_back = ["backup", "--restore", str(tmp_path / "copy")]
        for arguments, stdin in ((["key", "recovery", "--restore"], code), (put_back, "")):
            result = CliRunner().invoke(cli, arguments, input=stdin, env=environment)
            assert result.exit_code == 0, result.stderr
        assert "5 rows may have been sent or cancelled since" in result.stderr
        assert (tmp_path / "fresh").stat().st_mode & 0o077 == 0
        assert await queued_in(tmp_path / "fresh") == 5
