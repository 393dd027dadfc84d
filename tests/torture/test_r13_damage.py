"""R13: the database is damaged on its disk.

Wanted: it is seen, never served as if it were right; the damaged file is kept, what can be read is salvaged and
counted, and the service starts with that.
"""

import asyncio
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
from fakes import storage_values as values
from fakes.storage_values import NOW

from agent.errors import OutriderError, StorageCorrupt, WrongKey
from agent.records import CloudAnswer
from agent.storage.connection import DATABASE_NAME
from agent.storage.salvage import salvage

PAGE = 4096


async def filled(data, rows):
    storage = await values.open_storage(data, values.QUEUE, values.KEEP, now_ms=NOW)
    for number in range(rows):
        await values.enqueue(storage, text=f"question {number} " + "x" * 900)
        if number % 3 == 0:
            row, record = await storage.outbox.claim("cloud", now_ms=NOW, lease_ms=60_000)
            await storage.outbox.begin_send(row, body_sha256="ab", body_bytes=100, now_ms=NOW)
            answer = CloudAnswer(text=f"late {record.id}", finish_reason="stop", model="big")
            await storage.outbox.succeed(row, answer, now_ms=NOW)
    records = {row.request_id: await storage.journal.get(row.request_id) for row in await storage.outbox.list(limit=-1)}
    await storage.close()
    return records


def flip(path, chance, pages):
    """Turn one byte in each of some pages; return which."""
    count = path.stat().st_size // PAGE
    hit = sorted(chance.sample(range(1, count), min(pages, count - 1)))
    with path.open("r+b") as file:
        for page in hit:
            at = page * PAGE + chance.randrange(PAGE)
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ (1 << chance.randrange(8))]))
    return hit


async def served(data, ids=()):
    """Read everything (or ``ids``) as the daemon would; return the records, and the errors in place of others."""
    storage = await values.open_storage(data, values.QUEUE, values.KEEP, now_ms=NOW)
    records, errors = {}, []
    try:
        for request_id in ids or [row.request_id for row in await storage.outbox.list(limit=-1)]:
            if record := await storage.journal.get(request_id):
                records[request_id] = record
    except OutriderError as error:
        errors.append(error)
    finally:
        await storage.close()
    return records, errors


@pytest.mark.sizes(
    short={"cases": 2, "rows": 40},
    full={"cases": 30, "rows": 300, "patience_s": 600},
    long={"cases": 60, "rows": 1000, "patience_s": 2400},
)
def test_flipped_bits(tmp_path, size, shown):
    """bits of pages are flipped: what is salvaged is right, what is gone is counted, the service starts"""
    chance, total = random.Random(5), Counter()
    wrong, uncounted, unseen, broken = [], [], [], []
    whole = values.prepared_dir(tmp_path)
    before = asyncio.run(filled(whole, size["rows"]))
    for case in range(size["cases"]):
        data = Path(shutil.copytree(whole, tmp_path / f"case-{case}"))
        pages = flip(data / DATABASE_NAME, chance, (1, 3, 10, 40)[case % 4])
        try:
            records, errors = asyncio.run(served(data))
        except StorageCorrupt as error:
            records, errors = {}, [error]
        seen = any(isinstance(error, StorageCorrupt) for error in errors)
        wrong += [(case, rid) for rid, record in records.items() if record != before[rid]]
        try:
            report = salvage(data, now_ms=NOW)
        except StorageCorrupt as error:
            told = "list of its tables" in str(error)
            total.update(unreadable=1)
            unseen += [] if seen and told else [(case, pages)]
            continue
        after, errors = asyncio.run(served(data, before))
        broken += [(case, str(error)) for error in errors]
        lost = before.keys() - after.keys()
        told = report.tables["requests"].lost
        if told is not None and told < len(lost):
            uncounted.append((case, len(lost), told))
        if lost and not seen and not report.lost:
            unseen.append((case, pages))
        for rid, record in after.items():
            known = before[rid]
            if record.request is not None and record.request != known.request:
                wrong.append((case, rid))
            if record.cloud_answer is not None and record.cloud_answer != known.cloud_answer:
                wrong.append((case, rid))
        if not list(data.glob(f"{DATABASE_NAME}.damaged-*")):
            broken.append((case, "the damaged file is not kept"))
        total.update(pages=len(pages), seen=seen, rows=len(before), kept=len(after), held=report.held)
        shutil.rmtree(data)
    shown.did("damaged databases, pages in all", f"{size['cases']}, {total['pages']}")
    shown.did("of these seen while the queue was read", total["seen"])
    shown.did("of these without a readable list of tables, which is said", total["unreadable"])
    shown.did("requests kept, of", f"{total['kept']:,}, {total['rows']:,}")
    shown.did("of these held for a person, their row being lost", total["held"])
    shown.none("wrong texts served or salvaged", wrong)
    shown.none("losses that were not counted", uncounted)
    shown.none("losses that nothing told of", unseen)
    shown.none("services that did not start with what was salvaged", broken)


@pytest.mark.sizes(short={}, full={}, long={})
def test_the_log_of_sqlite(tmp_path, shown):
    """the write-ahead log is cut off or damaged, the shared memory file is gone"""
    whole = values.prepared_dir(tmp_path)
    checkpointed = asyncio.run(filled(whole, 20))
    storage_dir = Path(shutil.copytree(whole, tmp_path / "live"))

    async def more():
        storage = await values.open_storage(storage_dir, values.QUEUE, values.KEEP, now_ms=NOW)
        late = [(await values.enqueue(storage, text=f"later {n}")).id for n in range(20)]
        for part in storage_dir.iterdir():  # as a crash leaves it: the log is not checkpointed
            shutil.copy(part, tmp_path / "crashed")
        await storage.close()
        return late

    (tmp_path / "crashed").mkdir()
    late = asyncio.run(more())
    log = tmp_path / "crashed" / f"{DATABASE_NAME}-wal"
    size = log.stat().st_size
    assert size > PAGE
    outcomes = {}
    for name, harm in {
        "no -shm": lambda where: (where / f"{DATABASE_NAME}-shm").unlink(missing_ok=True),
        "log cut in the middle": lambda where: os.truncate(where / log.name, size // 2),
        "log cut in a frame": lambda where: os.truncate(where / log.name, size - 1000),
        "byte turned in the log": lambda where: _turn(where / log.name, size // 2),
    }.items():
        where = Path(shutil.copytree(tmp_path / "crashed", tmp_path / name.replace(" ", "-")))
        harm(where)
        records, errors = asyncio.run(served(where))
        there = sum(rid in records for rid in late)
        outcomes[name] = (there, not errors and checkpointed.keys() <= records.keys())
    shown.did("rows in the log, found again", ", ".join(f"{name}: {n} of 20" for name, (n, _) in outcomes.items()))
    shown.holds("nothing is lost without its -shm", outcomes["no -shm"][0] == 20)
    shown.none("services that did not start with what was before", [n for n, (_, ok) in outcomes.items() if not ok])


def _turn(path, at):
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 16]))


@pytest.mark.sizes(short={}, full={}, long={})
def test_the_first_page(tmp_path, shown):
    """the first page is damaged: nothing can be read, which is said, and nothing is touched"""
    data = values.prepared_dir(tmp_path)
    asyncio.run(filled(data, 5))
    _turn(data / DATABASE_NAME, 2000)
    before = (data / DATABASE_NAME).read_bytes()
    with pytest.raises(WrongKey):
        asyncio.run(served(data))
    with pytest.raises(StorageCorrupt, match="first page"):
        salvage(data, now_ms=NOW)
    shown.holds("the file is as it was", (data / DATABASE_NAME).read_bytes() == before)
    shown.none("files left behind", list(data.glob(".salvaged*")))
