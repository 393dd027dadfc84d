"""What is removed frees its space, and nothing that somebody needs ever goes."""

import contextlib
import json
import os
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from fakes.gguf import gguf

from agent.cli.main import cli
from agent.errors import ModelNotFound, StorageError, WrongState
from agent.models import collecting, holding, interrupted
from agent.models.artifact import StoredModel
from agent.models.blobs import described
from agent.models.build_env import FOLDER, BuildEnvironment
from agent.models.collecting import collect, remove_model
from agent.models.holding import held
from agent.models.interrupted import working_folder
from agent.models.manifest import Manifest
from agent.models.store import LOCK_NAME, ModelStore
from agent.types import ModelFormat

WEEKS_AGO = time.time() - 30 * 86_400


@pytest.fixture
def store(tmp_path):
    return ModelStore(tmp_path / "models", Manifest(()))


def put(store: ModelStore, name: str, **files: bytes) -> StoredModel:
    """Keep a model of several files, so that some may be shared."""
    place = store.blobs.root.parent / "outside"
    place.mkdir(exist_ok=True)
    paths = {f"{file}.txt": place / f"{name}-{file}" for file in files}
    for path, data in zip(paths.values(), files.values(), strict=True):
        path.write_bytes(data)
    model = StoredModel(
        name=name,
        title=name,
        format=ModelFormat.CHECKPOINT,
        files=tuple(described(path, file) for file, path in paths.items()),
        licence="MIT",
        source="file /x",
        context_tokens=256,
    )
    return store.add(model, paths)


def command(*arguments: str):
    return CliRunner().invoke(cli, list(arguments), prog_name="outrider")


def make_old(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (WEEKS_AGO, WEEKS_AGO))


def leftover(store: ModelStore, place: str, key: str) -> Path:
    store.blobs.prepare()
    with working_folder(store.blobs.root / place, key, "busy") as folder:
        (folder / "half.part").write_bytes(b"x" * 100)
    return folder


def test_a_removed_model_gives_back_what_no_other_one_has(store):
    put(store, "one", a=b"{}", b=b"1" * 1000)
    kept = put(store, "two", a=b"{}", b=b"2" * 10)
    done = remove_model(store, "one")
    assert (done.bytes, done.shared) == (1000, ("two",))
    assert store.blobs.digests() == sorted(file.sha256 for file in kept.files)
    assert len(list((store.blobs.root / "trees").iterdir())) == 1
    assert store.verify("two")
    with pytest.raises(ModelNotFound):
        store.show("one")
    with pytest.raises(ModelNotFound):
        remove_model(store, "one")


def test_what_nothing_refers_to_goes(store, tmp_path):
    put(store, "one", a=b"{}", b=b"1" * 1000)
    put(store, "two", a=b"2", b=b"{}")
    store.forget("one")
    (store.blobs.root / "incoming" / "copy-killed").write_bytes(b"x" * 7)
    (store.blobs.root / "refs" / ".half-written").write_bytes(b"{")
    would = collect(store, dry_run=True)
    assert len(store.blobs.digests()) == 3
    found = collect(store)
    assert found == would
    assert found.bytes == 1007
    assert {one.kind for one in found.removed} == {"file", "temporary"}
    assert store.verify("two")
    assert len(list((store.blobs.root / "verified").iterdir())) == 2
    assert not list((store.blobs.root / "refs").glob(".*"))
    assert collect(store).removed == ()


@pytest.mark.parametrize("place", ["pulls", "making"])
def test_an_interrupted_call_can_go_on_for_a_week(store, tmp_path, place):
    old, young, busy = (leftover(store, place, name) for name in ("old", "young", "busy"))
    make_old(old)
    make_old(busy)
    with working_folder(store.blobs.root / place, "busy", "busy"):
        found = collect(store)
        assert [one.name for one in found.removed] == ["old"]
        assert [(one.name, one.bytes) for one in found.kept] == [("young", 100)]
        assert not old.exists()
        collect(store, everything=True)
        assert not young.exists()
        assert (busy / "half.part").exists()
    assert [path.name for path in (store.blobs.root / place).iterdir() if path.suffix == ".lock"] == ["busy.lock"]


def test_who_only_looks_at_a_folder_keeps_nobody_from_its_work(store, monkeypatch):
    place = store.blobs.root / "pulls"
    place.mkdir(parents=True)
    with contextlib.ExitStack() as looking:
        looking.enter_context(held(place / "one.lock", "looked at", shared=True))
        monkeypatch.setattr(holding.time, "sleep", lambda _: looking.close())
        with working_folder(place, "one", "busy") as folder:
            assert folder.is_dir()


def test_a_quarantined_file_stays_a_week_for_a_look(store, tmp_path):
    folder = store.blobs.root / "quarantine"
    folder.mkdir(parents=True)
    (folder / "abc").write_bytes(b"bad")
    (folder / "abc.json").write_text('{"model": "m", "reason": "r"}')
    assert [one.kind for one in collect(store).kept] == ["quarantine"]
    make_old(folder)
    assert collect(store).bytes == 3
    assert list(folder.iterdir()) == []


def test_a_dead_environment_goes_and_one_that_is_made_stays(store, tmp_path, monkeypatch):
    store.blobs.prepare()
    root = BuildEnvironment(tmp_path, "generation").root
    root.mkdir(parents=True)
    (root / "setup.log").write_text("half way")
    with held(root.with_name(f"{root.name}.lock"), "being made"):
        assert collect(store, everything=True).removed == ()
    monkeypatch.setattr(BuildEnvironment, "made", property(lambda _: True))
    assert collect(store, everything=True).removed == ()
    monkeypatch.setattr(BuildEnvironment, "made", property(lambda _: False))
    assert [one.kind for one in collect(store).removed] == ["environment"]
    assert not list((tmp_path / FOLDER).iterdir())


def test_a_record_that_cannot_be_read_stops_it(store, tmp_path):
    put(store, "one", a=b"{}", b=b"1")
    (store.blobs.root / "refs" / "one.json").write_text("{")
    with pytest.raises(StorageError, match=r"one\.json is damaged"):
        collect(store)
    assert len(store.blobs.digests()) == 2


def test_it_waits_for_who_takes_files_in(store, tmp_path, monkeypatch):
    monkeypatch.setattr(collecting, "_PATIENCE_S", 0.0)
    with store.taking_in(), store.taking_in(), pytest.raises(WrongState, match="being taken into the store"):
        collect(store)
    collect(store)


def test_files_are_taken_in_only_after_it_is_done(store):
    store.blobs.prepare()
    done = threading.Event()
    with held(store.blobs.root / LOCK_NAME, "busy"):
        thread = threading.Thread(target=lambda: (put(store, "one", a=b"{}", b=b"1"), done.set()))
        thread.start()
        assert not done.wait(0.1)
    thread.join()
    assert store.verify("one")


def test_whatever_happens_at_once_every_name_has_its_files(store, tmp_path):
    """Threads take in, forget and clear the same files over and over."""
    put(store, "stays", a=b"{}", b=b"same")
    stop = threading.Event()
    errors: list[BaseException] = []

    def again(work) -> None:
        while not stop.is_set() and not errors:
            try:
                work()
            except (WrongState, ModelNotFound):
                continue
            except BaseException as error:
                errors.append(error)

    def come_and_go() -> None:
        put(store, "comes", a=b"{}", b=b"same", c=b"own")
        store.verify("comes")
        store.forget("comes")

    threads = [
        threading.Thread(target=again, args=(work,))
        for work in (come_and_go, lambda: collect(store), lambda: collect(store, everything=True))
    ]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert store.verify("stays")


def test_a_lock_that_its_holder_removed_is_no_lock(tmp_path):
    path = tmp_path / "lock"
    with held(path, "busy"):
        path.unlink()
        with held(path, "busy"), pytest.raises(WrongState, match="busy"), held(path, "busy"):
            pass


def test_old_leftovers_are_swept_beside_new_work(store):
    old = leftover(store, "making", "old")
    make_old(old)
    young = leftover(store, "making", "young")
    interrupted.sweep(store.blobs.root / "making")
    assert not old.exists()
    assert young.exists()


def test_the_default_model_is_not_removed_unforced(tmp_path):
    given = ("--data-dir", str(tmp_path))
    store = ModelStore(tmp_path / "models", Manifest(()))
    put(store, "smollm2-135m-instruct", a=b"{}", b=b"1" * 2048)
    refused = command(*given, "models", "rm", "smollm2-135m-instruct")
    assert refused.exit_code == WrongState.exit_code
    assert "the alias default stands for it" in refused.stderr
    (tmp_path / "config.toml").write_text('[[adapters]]\nname = "a"\nmodel = "other"\npath = "/x"\n')
    put(store, "other", a=b"{}", b=b"2")
    adapted = ("--config", str(tmp_path / "config.toml"), *given)
    assert "the adapter a is based on it" in command(*adapted, "models", "rm", "other").stderr
    done = command(*given, "models", "rm", "smollm2-135m-instruct", "--force", "--json")
    told = json.loads(done.stdout)
    assert (told["bytes"], told["shared_with"]) == (2048, ["other"])


def test_gc_on_the_command_line(tmp_path):
    given = ("--data-dir", str(tmp_path))
    assert json.loads(command(*given, "models", "gc", "--json").stdout)["bytes"] == 0
    store = ModelStore(tmp_path / "models", Manifest(()))
    put(store, "one", a=b"{}", b=gguf())
    store.forget("one")
    leftover(store, "pulls", "young")
    told = command(*given, "models", "gc", "--dry-run")
    assert "would be freed" in told.stdout
    assert "1 leftover of 100 B could still be of use" in told.stderr
    assert command(*given, "models", "gc").exit_code == 0
    assert store.blobs.digests() == []
