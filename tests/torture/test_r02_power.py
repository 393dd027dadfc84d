"""R2: the power goes. What was not synced is gone, or there in part; what was acknowledged is there.

A library under the program keeps what the disk would hold (tests/fakes/preload/power.c). Worst case in turns: only
what was synced survives, with renames late or early; or some of the blocks that were not synced as well.
"""

import asyncio
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from fakes import storage_values as values
from fakes import tiny_gguf
from fakes.old_database import old_database
from fakes.preload import Power
from fakes.storage_lives import REPO, Lives
from fakes.storage_values import NOW
from test_r01_kills import Found, Said

from agent.models.store import open_store
from agent.storage import keys, migrations
from agent.storage.connection import DATABASE_NAME

PER_DATABASE = 10


@pytest.mark.sizes(
    short={"cuts": 10, "least": 1},
    full={"cuts": 80, "least": 80, "patience_s": 900},
    long={"cuts": 160, "least": 160, "patience_s": 1800},
)
def test_while_the_queue_works_and_checkpoints(tmp_path, size, shown):
    """power cuts while rows are written, sent, recorded and checkpointed"""
    chance = random.Random(7)
    total, lost, crooked, damaged = Counter(), [], [], []
    for first in range(0, size["cuts"], PER_DATABASE):
        names = ("late", "early")[first // PER_DATABASE % 2]
        data = values.prepared_dir(tmp_path)
        power = Power(data, tmp_path / f"platter-{first}", names=names)
        said = Said()
        with Lives(power.environment) as lives:
            for cut in range(min(PER_DATABASE, size["cuts"] - first)):
                work = chance.choice(("queue", "maintain"))
                after = chance.uniform(0.01, 0.2)
                said.hear(lives.lead(work, data, tmp_path / "acks", now_ms=NOW + cut, kill_after_s=after))
                power.cut(chance, written_back=chance.choice((0.0, 0.0, 0.3, 0.9)))
                found = asyncio.run(Found.look(data, NOW + cut))
                lost += found.lost(said)
                crooked += found.crooked()
                damaged += [found.check] if found.check != "ok" else []
                damaged += [found.broken_log] if found.broken_log else []
                shutil.rmtree(power.shadow)
                shutil.copytree(data, power.shadow)
                total.update(cuts=1)
        assert power.syncs, "the library saw no sync: it stands beside the program, not under it"
        total.update(queued=len(said.queued), resolved=len(said.resolved), syncs=power.syncs)
    assert total["queued"] > size["least"]
    shown.did("cuts", total["cuts"])
    shown.did("syncs seen by the library", total["syncs"])
    shown.did("rows queued, of these answered", f"{total['queued']}, {total['resolved']}")
    shown.none("acknowledged and lost", lost)
    shown.none("rows and requests at odds", crooked)
    shown.none("databases that do not open, or are damaged", damaged)


@pytest.mark.sizes(
    short={"cuts": 2},
    full={"cuts": 20, "patience_s": 300},
    long={"cuts": 40, "patience_s": 600},
)
def test_while_the_schema_is_brought_up(tmp_path, size, shown, monkeypatch):
    """power cuts while a full queue of an early release is brought to this schema"""
    chance = random.Random(11)
    found, damaged = Counter(), []
    ids = old_database(tmp_path / "old", 300, monkeypatch)
    syncs = 0
    for cut in range(size["cuts"] + 1):
        data = Path(shutil.copytree(tmp_path / "old", tmp_path / f"data-{cut}"))
        power = Power(data, tmp_path / f"platter-{cut}", names=("late", "early")[cut % 2])
        # The first is left to its end: how often it syncs says where to cut the others.
        last = 1 + (cut - 1) * syncs // size["cuts"] if cut else 0
        with Lives(power.environment | {"POWER_LAST": str(last)}) as lives:
            said = lives.lead("migrate", data, tmp_path / "acks", now_ms=NOW, kill_after_s=60)
        if not cut:
            syncs = power.syncs
            assert said == [["migrated", "-"]]
            assert syncs, "the library saw no sync: it stands beside the program, not under it"
        power.cut(chance, written_back=chance.choice((0.0, 0.5)))
        raw = values.raw_connection(data)
        version = raw.execute("PRAGMA user_version").fetchone()[0]
        there = {row[0] for row in raw.execute("SELECT request_id FROM escalations WHERE state = 'pending'")}
        check = raw.execute("PRAGMA quick_check").fetchone()[0]
        raw.close()
        found[version] += 1
        migrations.migrate(data / DATABASE_NAME, keys.load(data, {}).material)
        after = asyncio.run(Found.look(data, NOW))
        if check != "ok" or there != ids or after.check != "ok" or after.records.keys() != ids:
            damaged.append((cut, version, check))
        shutil.rmtree(data)
    shown.did("cuts", size["cuts"])
    shown.did("schema found after the cut (times)", ", ".join(f"{v} ({n})" for v, n in sorted(found.items())))
    shown.none("cuts after which a row was gone, or the migration did not go on", damaged)


def pull(data, source, environment, last):
    """Take a model in; the process ends after that many syncs (0: it goes to the end). Returns its exit status."""
    command = [
        sys.executable,
        "-m",
        "agent",
        "--data-dir",
        str(data),
        "pull",
        str(source),
        "--name",
        "tiny",
        "--offline",
    ]
    run = subprocess.run(
        command, cwd=REPO, env={**os.environ, **environment, "POWER_LAST": str(last)}, capture_output=True, check=False
    )
    return run.returncode


@pytest.mark.sizes(
    short=None,
    full={"cuts": 20, "patience_s": 600},
    long={"cuts": 40, "patience_s": 1200},
)
def test_while_a_model_is_taken_in(tmp_path, size, shown):
    """power cuts while a model is taken into the store from a file"""
    chance = random.Random(13)
    source = tiny_gguf.write(tmp_path / "Tiny.gguf", seed=1)
    syncs, half, stuck, found = 0, [], [], Counter()
    for cut in range(size["cuts"] + 1):
        data = tmp_path / f"data-{cut}"
        data.mkdir()
        power = Power(data, tmp_path / f"platter-{cut}", names=("late", "early")[cut % 2])
        last = 1 + (cut - 1) * syncs // size["cuts"] if cut else 0
        status = pull(data, source, power.environment, last)
        if not cut:
            syncs = power.syncs
            assert status == 0, "the model cannot be taken in at all"
            assert syncs, "the library saw no sync: it stands beside the program, not under it"
        power.cut(chance, written_back=chance.choice((0.0, 0.5)))
        store = open_store(data)
        there = [entry.name for entry in store.list() if entry.name == "tiny"]
        for name in there:
            try:
                store.verify(name)
            except Exception as error:
                half.append((cut, last, str(error)))
        found["whole" if there else "not there"] += 1
        if status == 0 and not there:
            half.append((cut, last, "it was said to be there"))
        if not there and pull(data, source, {}, 0) != 0:
            stuck.append((cut, last))
        shutil.rmtree(data)
    shown.did("cuts, each after another sync of", f"{size['cuts']}, {syncs}")
    shown.did("found after the cut", ", ".join(f"{what}: {count}" for what, count in sorted(found.items())))
    shown.none("models visible and not whole, or said to be there and gone", half)
    shown.none("cuts after which it could not be taken in anew", stuck)
