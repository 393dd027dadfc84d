"""What a thief of the files can read: nothing. What is purged is gone."""

import pytest
from fakes import storage_values as values
from fakes.storage_values import DAY, NOW

from agent.errors import KeyProblem, WrongKey
from agent.records import CloudAnswer
from agent.storage.backup import backup, restore
from agent.storage.destruction import destroy

NEEDLE = "the needle of Outrider 7f3a"


def found(data):
    """Return the files in which the needle is readable."""
    assert (data / "outrider.db-wal").exists()
    return [path.name for path in data.iterdir() if NEEDLE.encode() in path.read_bytes()]


async def test_no_text_is_readable_in_any_file(tmp_path):
    data = values.prepared_dir(tmp_path)
    storage = await values.open_storage(data, values.QUEUE, values.KEEP, now_ms=NOW)
    asked = values.request(NEEDLE, user=NEEDLE, idempotency_key=NEEDLE, metadata={"note": NEEDLE})
    await storage.journal.open(asked, now_ms=NOW)
    await storage.journal.settle(asked, values.generation(NEEDLE), values.UNSURE, values.queued(), now_ms=NOW)
    row, record = await storage.outbox.claim("cloud", now_ms=NOW, lease_ms=1000)
    assert NEEDLE in record.generation.text
    await storage.outbox.begin_send(row, body_sha256="ab", body_bytes=1, now_ms=NOW)
    answer = CloudAnswer(text=NEEDLE, finish_reason="stop", model=NEEDLE)
    await storage.outbox.succeed(row, answer, now_ms=NOW)
    assert found(data) == []
    await storage.db.checkpoint()
    assert found(data) == []
    # The same search does find it where it is written in the clear.
    (data / "plain").write_text(f"... {NEEDLE} ...")
    assert found(data) == ["plain"]
    await storage.close()


async def test_purged_texts_are_gone_for_the_owner_of_the_key_too(tmp_path):
    data = values.prepared_dir(tmp_path)
    storage = await values.open_storage(data, values.QUEUE, values.KEEP, now_ms=NOW)
    asked = values.request(NEEDLE, user=NEEDLE, metadata={"note": NEEDLE})
    await storage.journal.open(asked, now_ms=NOW)
    await storage.journal.settle(asked, values.generation(NEEDLE), values.UNSURE, values.ANSWERED, now_ms=NOW)
    await storage.maintain(NOW)
    assert NEEDLE.encode() in decrypted(data, tmp_path / "before")
    await storage.maintain(NOW + DAY)
    assert (data / "outrider.db-wal").stat().st_size == 0
    assert NEEDLE.encode() not in decrypted(data, tmp_path / "after")
    await storage.close()


def decrypted(data, dest):
    """Return the database in the clear."""
    connection = values.raw_connection(data)
    try:
        connection.execute(f"ATTACH DATABASE '{dest}' AS plain KEY ''")
        connection.execute("SELECT sqlcipher_export('plain')").fetchall()
    finally:
        connection.close()
    return dest.read_bytes()


async def test_a_destroyed_key_makes_every_copy_unreadable_and_the_next_start_begins_anew(tmp_path):
    data = values.prepared_dir(tmp_path)
    storage = await values.open_storage(data, values.QUEUE, values.KEEP, now_ms=NOW)
    await storage.journal.open(values.request(NEEDLE), now_ms=NOW)
    await storage.close()
    elsewhere = tmp_path / "copy.db"
    backup(data, elsewhere)
    material = (data / "key").read_bytes()
    (data / "outrider.db.replaced-1.raw-key").write_bytes(material)
    assert destroy(data) >= 3
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and material in path.read_bytes()]
    assert not list(data.glob("*.db*"))
    with pytest.raises(KeyProblem):
        restore(elsewhere, data, now_ms=NOW)
    storage = await values.open_storage(data, values.QUEUE, values.KEEP, now_ms=NOW)
    await storage.close()
    assert (data / "key").read_bytes() != material
    with pytest.raises(WrongKey):
        restore(elsewhere, data, now_ms=NOW)


def test_there_is_nothing_to_destroy(tmp_path):
    with pytest.raises(KeyProblem):
        destroy(tmp_path)


async def test_a_destruction_that_was_cut_short_is_finished(tmp_path):
    data = values.prepared_dir(tmp_path)
    storage = await values.open_storage(data, values.QUEUE, values.KEEP, now_ms=NOW)
    await storage.close()
    (data / "key").unlink()
    assert destroy(data) == 1
    assert not (data / "outrider.db").exists()
