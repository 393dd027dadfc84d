"""Saved prefixes on disk, in real SQLCipher files."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from agent.errors import DiskFull, StorageError
from agent.records import StoredPrefix
from agent.storage import keys, prefix_store
from agent.storage.prefix_store import PrefixStore

KEY = bytes(range(32))
MIB = 1 << 20
NEEDLE = b"the text of nobody's business "


def prefix(name="cities", model="m", size=3 * MIB, **changes):
    given = {"model_digest": "d" * 64, "fingerprint": "f" * 64, "tokens": 40, "created_at_ms": 7}
    return StoredPrefix(name=name, model=model, parts=((0, 40, size),), **(given | changes))


def bytes_of(name, size=3 * MIB):
    line = NEEDLE + name.encode()
    return (line * (size // len(line) + 1))[:size]


async def pieces(data, piece=MIB):
    for at in range(0, len(data), piece):
        yield data[at : at + piece]


async def write(store, one):
    return await store.write(one, pieces(bytes_of(one.name, one.parts[0][2])))


async def read(store, one):
    return b"".join([data async for data in store.read(one)])


@pytest.fixture
async def store(tmp_path):
    store = PrefixStore(tmp_path, KEY, most_bytes=20 * MIB)
    yield store
    await store.close()


def files(tmp_path):
    folder = tmp_path / "prefixes"
    return sorted(folder.iterdir()) if folder.exists() else []


async def test_what_is_written_is_read_again_by_a_later_life(store, tmp_path):
    assert await store.all() == []
    assert await write(store, prefix())
    later = PrefixStore(tmp_path, KEY, most_bytes=20 * MIB)
    found = await later.find("cities", "m")
    assert msgspec.structs.replace(found, file="", disk_bytes=0, used_at_ms=0) == prefix()
    assert await read(later, found) == bytes_of("cities")
    assert await later.find("cities", "another") is None
    (path,) = files(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    await later.close()


async def test_nothing_of_it_is_readable_on_the_disk(store, tmp_path):
    await write(store, prefix())
    (path,) = files(tmp_path)
    content = path.read_bytes()
    assert NEEDLE not in content
    assert b"cities" not in content
    assert b"SQLite" not in content


async def test_another_of_the_same_name_takes_its_place(store, tmp_path):
    await write(store, prefix())
    await write(store, prefix(fingerprint="e" * 64, size=MIB))
    (found,) = await store.all()
    assert found.fingerprint == "e" * 64
    assert len(files(tmp_path)) == 1


async def test_the_least_recently_used_leave_for_a_new_one(store):
    for number, name in enumerate("abcd"):
        await write(store, prefix(name, size=4 * MIB))
        path = store._folder / (await store.find(name, "m")).file
        os.utime(path, (number, number))
    assert await read(store, await store.find("a", "m"))
    await write(store, prefix("e", size=4 * MIB))
    assert {one.name for one in await store.all()} == {"a", "c", "d", "e"}
    assert sum(one.disk_bytes for one in await store.all()) <= 20 * MIB


async def test_what_is_above_the_ceiling_is_not_written(store, tmp_path):
    assert not await store.write(prefix(size=21 * MIB), pieces(b""))
    assert files(tmp_path) == []


async def test_a_lower_ceiling_holds_from_the_next_start_on(store, tmp_path):
    await write(store, prefix("a"))
    later = PrefixStore(tmp_path, KEY, most_bytes=0)
    assert await later.keep_only({("a", "m")}) == 1
    assert files(tmp_path) == []
    await later.close()


async def test_only_what_is_named_stays(store, tmp_path):
    for name in "ab":
        await write(store, prefix(name, size=MIB))
    unfinished = tmp_path / "prefixes" / "0123.unfinished"
    unfinished.write_bytes(b"of a life that ended")
    assert await store.keep_only({("a", "m"), ("b", "another model")}) == 1
    assert [one.name for one in await store.all()] == ["a"]
    assert not unfinished.exists()


async def test_they_are_removed_by_name_or_all(store, tmp_path):
    for name in "abc":
        await write(store, prefix(name, size=MIB))
    assert await store.remove(["a", "nobody"]) == 1
    assert {one.name for one in await store.all()} == {"b", "c"}
    assert await store.remove() == 2
    assert files(tmp_path) == []
    assert not (tmp_path / "prefixes").exists()


async def test_what_is_removed_is_overwritten_first(store, tmp_path):
    await write(store, prefix(size=MIB))
    (path,) = files(tmp_path)
    with path.open("rb") as held:
        await store.remove(["cities"])
        assert set(held.read()) == {0}


def cut(path):
    os.truncate(path, path.stat().st_size // 8 * 4)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def header(path):
    path.write_bytes(bytes(4096) + path.read_bytes()[4096:])


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, header, empty], ids=lambda damage: damage.__name__)
async def test_what_is_damaged_is_thrown_away_and_nothing_else(store, tmp_path, damage):
    await write(store, prefix("kept", size=MIB))
    (whole,) = files(tmp_path)
    await write(store, prefix())
    (path,) = set(files(tmp_path)) - {whole}
    found = await store.find("cities", "m")
    damage(path)
    with pytest.raises(StorageError):
        await read(store, found)
    assert files(tmp_path) == [whole]
    assert [one.name for one in await store.all()] == ["kept"]


@pytest.mark.parametrize("damage", [cut, header, empty], ids=lambda damage: damage.__name__)
async def test_what_does_not_open_is_not_listed(store, tmp_path, damage):
    await write(store, prefix())
    damage(*files(tmp_path))
    assert await store.all() == []
    assert files(tmp_path) == []


async def test_under_another_key_it_is_thrown_away(store, tmp_path, caplog):
    await write(store, prefix())
    other = PrefixStore(tmp_path, bytes(32), most_bytes=20 * MIB)
    assert await other.all() == []
    assert files(tmp_path) == []
    assert "thrown away" in caplog.text
    assert "cities" not in caplog.text
    await other.close()


async def test_a_file_of_another_release_is_thrown_away(store, tmp_path, monkeypatch):
    monkeypatch.setattr(prefix_store, "FORMAT", 2)
    await write(store, prefix(size=MIB))
    monkeypatch.undo()
    assert await store.all() == []
    assert files(tmp_path) == []


async def test_pieces_that_end_early_leave_nothing(store, tmp_path):
    assert not await store.write(prefix(), pieces(bytes_of("cities", MIB)))
    assert files(tmp_path) == []


async def test_a_writer_that_is_cancelled_leaves_nothing(store, tmp_path):
    first_is_taken = asyncio.Event()

    async def endless():
        yield bytes(MIB)
        first_is_taken.set()
        await asyncio.Event().wait()

    writing = asyncio.create_task(store.write(prefix(), endless()))
    await first_is_taken.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await store.close()
    assert files(tmp_path) == []


async def test_the_queue_needs_the_disk_more(store, tmp_path, monkeypatch):
    monkeypatch.setattr(prefix_store, "RESERVE_BYTES", 1 << 60)
    with pytest.raises(DiskFull):
        await write(store, prefix())
    assert files(tmp_path) == []


async def test_a_rotation_of_the_key_erases_them(tmp_path):
    from agent.storage.connection import connect

    key = keys.load_or_create(tmp_path)
    connect(tmp_path / "outrider.db", key.material, create=True).close()
    store = PrefixStore(tmp_path, key.material, most_bytes=20 * MIB)
    await write(store, prefix(size=MIB))
    keys.rotate(tmp_path)
    assert files(tmp_path) == []
    await store.close()


WRITER = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from unit.test_prefix_store import KEY, MIB, PrefixStore, prefix, write

async def main():
    store = PrefixStore(Path(sys.argv[1]), KEY, most_bytes=20 * MIB)
    while True:
        for name in "abc":
            await write(store, prefix(name))
            print(name, flush=True)

asyncio.run(main())
"""


async def test_killed_at_any_moment_there_is_never_half_of_one(tmp_path):
    tests = Path(__file__).parents[1]
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), str(tests.parent), str(tests)], stdout=subprocess.PIPE
    )
    for _ in range(4):
        child.stdout.readline()
    child.kill()
    child.wait()
    child.stdout.close()
    store = PrefixStore(tmp_path, KEY, most_bytes=20 * MIB)
    found = await store.all()
    assert {one.name for one in found} == set("abc")
    for one in found:
        assert await read(store, one) == bytes_of(one.name)
    await store.keep_only({(name, "m") for name in "abc"})
    assert all(path.suffix == ".db" for path in files(tmp_path))
    await store.close()
