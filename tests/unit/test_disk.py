"""One budget over everything in the data directory: who holds what, and what is refused for it."""

import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from fakes.gguf import gguf

from agent.cli.main import cli
from agent.disk import PLACES, Holder, disk_use
from agent.errors import DiskFull
from agent.models import build_env, room
from agent.models.interrupted import working_folder
from agent.models.manifest import Manifest
from agent.models.pulling import Wish, pull
from agent.models.quantizing import Wish as MakingWish
from agent.models.quantizing import quantize
from agent.models.store import ModelStore
from agent.settings import PullSettings
from agent.storage.connection import DATABASE_NAME, PREFIXES_NAME

MIB = 1 << 20


def write(path: Path, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(count))


def quietly(_) -> None:
    pass


def store_of(tmp_path: Path, budget: int = 0) -> ModelStore:
    return ModelStore(tmp_path / "data" / "models", Manifest(()), disk_budget=budget)


def test_every_byte_has_one_holder(tmp_path):
    data = tmp_path / "data"
    for place, count in (
        ("models/blobs/a", 8),
        ("models/pulls/k/x.part", 3),
        ("models/making/k/x", 4),
        ("models/incoming/y", 1),
        ("models/quarantine/q", 2),
        ("build-envs/checkpoints/venv/lib/x", 5),
        ("prefixes/p.db", 6),
        ("outrider.db", 7),
        ("outrider.db-wal", 1),
        ("ballast", 2),
        ("whatever", 9),
    ):
        write(data / place, count * MIB)
    (data / "models" / "trees" / "t").mkdir(parents=True)
    (data / "models" / "trees" / "t" / "again").hardlink_to(data / "models" / "blobs" / "a")
    use = disk_use(data)
    assert {holder: count // MIB for holder, count in use.held.items()} == {
        Holder.MODELS: 8,
        Holder.PULLS: 3,
        Holder.MAKINGS: 5,
        Holder.QUARANTINE: 2,
        Holder.ENVIRONMENTS: 5,
        Holder.PREFIXES: 6,
        Holder.QUEUE: 10,
        Holder.OTHER: 9,
    }
    assert use.room == use.free
    assert disk_use(data, budget=50 * MIB).room // MIB in {1, 2}
    assert disk_use(tmp_path / "absent").total == 0


def test_the_places_are_those_that_others_write_to():
    places = [place for place, _ in PLACES]
    assert {f"{build_env.FOLDER}/", f"{PREFIXES_NAME}/", DATABASE_NAME} < set(places)


def test_a_pull_above_the_budget_is_refused_and_says_what_could_go(tmp_path):
    store = store_of(tmp_path, budget=6 * MIB)
    big = tmp_path / "big.gguf"
    big.write_bytes(gguf() + b"\0" * 4 * MIB)
    pull(store, PullSettings(), Wish(given=str(big)), quietly, quietly)
    with working_folder(store.blobs.root / "pulls", "half", "busy") as folder:
        write(folder / "x.part", MIB)
    other = tmp_path / "other.gguf"
    other.write_bytes(gguf() + b"\1" * 4 * MIB)
    with pytest.raises(DiskFull) as caught:
        pull(store, PullSettings(), Wish(given=str(other)), quietly, quietly)
    text = str(caught.value)
    assert "storage.disk_budget_bytes" in text
    assert "pulls under way 1 MiB" in text
    assert "`outrider models gc --all` frees 1 MiB" in text
    assert "big (5 MiB)" in text
    assert store.get("other") is None


def test_a_making_above_the_budget_is_refused_before_anything_is_made(tmp_path):
    source = tmp_path / "source-f16.gguf"
    source.write_bytes(gguf(tensors=(("token_embd.weight", (256, 3), 1, 0),), data=1536))
    with pytest.raises(DiskFull, match=r"making .* the budget"):
        quantize(store_of(tmp_path, budget=1), MakingWish(source=str(source), recipe="gguf-q8_0"), quietly)


def test_an_environment_above_the_budget_is_not_begun(tmp_path):
    given = ["--data-dir", str(tmp_path / "data"), "--set", "storage.disk_budget_bytes=1000000"]
    done = CliRunner().invoke(cli, [*given, "quantize", "--setup", "--yes"], prog_name="outrider")
    assert done.exit_code == DiskFull.exit_code
    assert "the environment checkpoints needs 3072 MiB" in done.stderr
    assert not (tmp_path / "data" / build_env.FOLDER).exists()


def test_the_disk_itself_is_a_limit_too(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("agent.disk.shutil.disk_usage", lambda _: usage._replace(free=room.MARGIN + 10))
    store = store_of(tmp_path)
    room.require_room(store, 10, "it")
    with pytest.raises(DiskFull, match=r"it needs 1 MiB: 65 MiB are free .* Free some space"):
        room.require_room(store, 11, "it")


def doctor(tmp_path, *more):
    arguments = ["--data-dir", str(tmp_path / "data"), *more, "doctor", "--disk"]
    return CliRunner().invoke(cli, arguments, prog_name="outrider")


def test_doctor_shows_who_holds_what(tmp_path):
    store = store_of(tmp_path)
    big = tmp_path / "big.gguf"
    big.write_bytes(gguf() + b"\0" * 4 * MIB)
    pull(store, PullSettings(), Wish(given=str(big)), quietly, quietly)
    write(tmp_path / "data" / "prefixes" / "p.db", MIB)
    shown = doctor(tmp_path)
    assert shown.exit_code == 0
    assert "saved prefixes  1.0 MiB" in shown.stdout
    assert "big    4.0 MiB" in shown.stdout
    over = doctor(tmp_path, "--set", "storage.disk_budget_bytes=1048576")
    assert over.exit_code == 1
    assert "more is there than the budget allows" in over.stderr


def test_doctor_as_json(tmp_path):
    write(tmp_path / "data" / "models" / "blobs" / "unused", MIB)
    arguments = ["--data-dir", str(tmp_path / "data"), "doctor", "--disk", "--json"]
    told = json.loads(CliRunner().invoke(cli, arguments, prog_name="outrider").stdout)
    assert told["held"]["models"] == told["total"] == MIB
    assert told["reclaimable"] == {"gc": MIB, "gc_all": MIB}
    assert told["budget"] is None
