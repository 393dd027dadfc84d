"""The key: its place, who may read it, rotation, and the printed form."""

import json
import os

import pytest
from fakes import storage_values as values
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import KeyProblem, StorageError, WrongKey
from agent.storage import keys
from agent.storage.connection import DATABASE_NAME, connect

MATERIAL = bytes(range(32))


@pytest.fixture
def data(tmp_path):
    return values.prepared_dir(tmp_path)


def test_is_made_once_for_its_owner_alone(tmp_path):
    key = keys.load_or_create(tmp_path, {})
    assert (key.place, len(key.material)) == ("file", 32)
    assert keys.load_or_create(tmp_path, {}) == key
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert key.material.hex() not in repr(key)


def test_comes_from_the_service_manager_when_it_gives_one(tmp_path):
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "outrider-key").write_text(MATERIAL.hex() + "\n")
    (credentials / "outrider-key").chmod(0o400)
    data = tmp_path / "data"
    data.mkdir()
    key = keys.load_or_create(data, {"CREDENTIALS_DIRECTORY": str(credentials)})
    assert (key.place, key.material) == ("credentials", MATERIAL)
    assert not (data / "key").exists()
    with pytest.raises(KeyProblem, match="CREDENTIALS_DIRECTORY"):
        keys.load(data, {})
    with pytest.raises(KeyProblem, match="service manager"):
        keys.rotate(data, {"CREDENTIALS_DIRECTORY": str(credentials)})


def test_the_place_is_never_guessed(data, tmp_path):
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "outrider-key").write_bytes(MATERIAL)
    assert keys.load_or_create(data, {"CREDENTIALS_DIRECTORY": str(credentials)}).place == "file"
    (data / "key-place.json").unlink()
    with pytest.raises(KeyProblem, match=r"key-place\.json"):
        keys.load_or_create(data, {})


def test_a_lost_key_is_not_replaced(data):
    (data / "key").unlink()
    with pytest.raises(KeyProblem, match="missing"):
        keys.load_or_create(data, {})
    assert not (data / "key").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_key_that_others_may_read_is_refused(data, mode):
    (data / "key").chmod(mode)
    with pytest.raises(KeyProblem, match="chmod 600"):
        keys.load(data, {})


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_is_refused(data, link):
    (data / "key").rename(data / "elsewhere")
    link(data / "elsewhere", data / "key")
    with pytest.raises(KeyProblem, match="plain file"):
        keys.load(data, {})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_users_key_is_refused(data):
    os.chown(data / "key", 12345, 12345)
    with pytest.raises(KeyProblem, match="another user"):
        keys.load(data, {})


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 33, b"zz" * 32, b"ab" * 31])
def test_a_malformed_key_is_refused(data, content):
    (data / "key").write_bytes(content)
    with pytest.raises(KeyProblem, match="malformed"):
        keys.load(data, {})


@pytest.mark.parametrize("content", ["", "[]", '{"place": "cloud"}', "{"])
def test_a_malformed_place_is_refused(data, content):
    (data / "key-place.json").write_text(content)
    with pytest.raises(KeyProblem, match="malformed"):
        keys.load(data, {})


def test_status_says_what_the_place_protects_against(data):
    status = keys.status(data, {})
    assert "stolen disk" in status.does_not_protect_against
    assert keys.load(data, {}).material.hex() not in json.dumps([status.fingerprint, status.path])


class TestRotate:
    async def test_everything_stays_and_the_old_key_no_longer_fits(self, data):
        storage = await values.open_storage(data, values.QUEUE, values.KEEP, now_ms=values.NOW)
        record = await values.enqueue(storage)
        await storage.close()
        old = keys.load(data, {})
        fresh = keys.rotate(data, {})
        assert fresh.material != old.material
        with pytest.raises(WrongKey):
            connect(data / DATABASE_NAME, old.material)
        storage = await values.open_storage(data, values.QUEUE, values.KEEP, now_ms=values.NOW)
        assert await storage.journal.get(record.id) == record
        assert await storage.egress_log.verify() is None
        await storage.close()

    def test_cut_short_before_the_database_changed(self, data):
        old = keys.load(data, {})
        keys.write_private(data / "key.next", MATERIAL)
        assert keys.load(data, {}) == old
        assert (data / "key.next").exists(), "only who holds the instance lock may throw it away"
        assert keys.load_or_create(data, {}) == old
        assert not (data / "key.next").exists()
        connect(data / DATABASE_NAME, old.material).close()

    def test_cut_short_after_the_database_changed(self, data, monkeypatch):
        def crash(data_dir):
            raise InterruptedError

        with monkeypatch.context() as patch:
            patch.setattr(keys, "_finish_rotation", crash)
            with pytest.raises(InterruptedError):
                keys.rotate(data, {})
        assert (data / "key.next").exists()
        key = keys.load(data, {})
        connect(data / DATABASE_NAME, key.material).close()
        assert (data / "key.next").exists()
        assert keys.load_or_create(data, {}).material == key.material
        assert not (data / "key.next").exists()

    def test_whoever_reads_the_key_meanwhile_changes_nothing(self, data, monkeypatch):
        old = keys.load(data, {})
        written = keys.write_private
        read = []

        def write_then_read(path, content):
            written(path, content)
            if path.name == "key.next":
                read.append(keys.load(data, {}))

        monkeypatch.setattr(keys, "_own", lambda *_: None)  # else the reader waits for the rotation
        monkeypatch.setattr(keys, "write_private", write_then_read)
        fresh = keys.rotate(data, {})
        assert [key.material for key in read] == [old.material]
        assert keys.load(data, {}) == fresh
        connect(data / DATABASE_NAME, fresh.material).close()

    def test_the_new_key_is_not_lost_with_its_file(self, data, monkeypatch):
        written = keys.write_private
        lost = []

        def write_then_lose(path, content):
            written(path, content)
            if path.name == "key.next" and not lost:
                lost.append(content)
                path.unlink()

        monkeypatch.setattr(keys, "write_private", write_then_lose)
        assert [keys.rotate(data, {}).material] == lost
        connect(data / DATABASE_NAME, lost[0]).close()

    @pytest.mark.parametrize("statement", ["BEGIN", "SELECT 1"])
    def test_not_while_another_process_reads(self, data, monkeypatch, statement):
        old = keys.load(data, {})
        tuned = keys.tune

        def impatient(connection):
            tuned(connection)
            connection.execute("PRAGMA busy_timeout = 10")

        monkeypatch.setattr(keys, "tune", impatient)
        reader = connect(data / DATABASE_NAME, old.material)
        try:
            reader.execute(statement)
            reader.execute("SELECT count(*) FROM requests").fetchall()
            with pytest.raises(StorageError, match="another process reads"):
                keys.rotate(data, {})
        finally:
            reader.close()
        assert keys.load(data, {}) == old
        assert not (data / "key.next").exists()
        assert keys.rotate(data, {}).material != old.material

    def test_no_key_is_thrown_away_when_neither_fits(self, data):
        keys.write_private(data / "key.next", MATERIAL)
        (data / DATABASE_NAME).write_bytes(os.urandom(8192))
        with pytest.raises(WrongKey):
            keys.load(data, {})
        assert (data / "key.next").read_bytes() == MATERIAL
        assert (data / "key").exists()


class TestRecovery:
    @given(st.binary(min_size=32, max_size=32))
    def test_the_printed_form_comes_back(self, material):
        code = keys.recovery_code(keys.Key(material, keys.KeyPlace.FILE, values.Path("key")))
        assert keys.from_recovery_code(code) == material
        assert keys.from_recovery_code(code.lower().replace("-", " ").replace("o", "0").replace("i", "1")) == material

    @given(st.binary(min_size=32, max_size=32), st.integers(0, 55), st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"))
    def test_one_wrong_letter_is_noticed(self, material, position, letter):
        code = keys.recovery_code(keys.Key(material, keys.KeyPlace.FILE, values.Path("key"))).replace("-", "")
        mistyped = code[:position] + letter + code[position + 1 :]
        if mistyped != code:
            with pytest.raises(KeyProblem):
                keys.from_recovery_code(mistyped)

    @pytest.mark.parametrize("code", ["", "AAAA", "é" * 56, "ABCDEFG-" * 8])
    def test_nonsense_is_refused(self, code):
        with pytest.raises(KeyProblem):
            keys.from_recovery_code(code)

    def test_a_lost_key_is_put_back(self, data):
        key = keys.load(data, {})
        code = keys.recovery_code(key)
        (data / "key").unlink()
        (data / "key-place.json").unlink()
        keys.restore(data, keys.from_recovery_code(code))
        assert keys.load(data, {}) == key

    def test_a_key_that_does_not_fit_is_not_put_back(self, data):
        before = keys.load(data, {})
        with pytest.raises(WrongKey):
            keys.restore(data, MATERIAL)
        assert keys.load(data, {}) == before
