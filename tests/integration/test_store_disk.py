"""A full disk, a read-only one, and death at any moment: what comes in is whole or is not there."""

import contextlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes.bundles import KEY, add, exported, quietly, store_at
from fakes.gguf import gguf

from agent.errors import DiskFull, StorageError
from agent.models import bundling, pulling
from agent.models.bundle_trust import BundleTrust
from agent.models.bundling import Landing, import_bundle
from agent.models.collecting import collect, remove_model
from agent.models.interrupted import working_folder
from agent.models.pulling import Wish, pull
from agent.models.room import require_room
from agent.settings import PullSettings
from agent.types import ModelFormat

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
LARGE = gguf() + b"\0" * 3 * MIB


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB; its own function makes it read-only."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: a full disk was NOT tried ({made.stderr.decode().strip()})")

    def read_only() -> None:
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)

    try:
        yield place, read_only
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture
def bundle(tmp_path):
    store = store_at(tmp_path / "from")
    add(store, "small", ModelFormat.GGUF, small_gguf=gguf())
    add(store, "large", ModelFormat.GGUF, large_gguf=LARGE)
    exported(store, tmp_path / "bundle", "small", "large")
    return tmp_path / "bundle"


def test_too_little_space_is_told_before_anything_is_written(small_disk, bundle, tmp_path):
    place, _ = small_disk
    store = store_at(place / "data")
    with pytest.raises(DiskFull, match="importing bundle needs 4 MiB"):
        import_bundle(store, bundle, Landing(), quietly, quietly, quietly)
    source = tmp_path / "large.gguf"
    source.write_bytes(LARGE)
    with pytest.raises(DiskFull, match="pulling large needs 4 MiB"):
        pull(store, PullSettings(), Wish(given=str(source)), quietly, quietly)
    assert store.list() == ()


def test_two_calls_do_not_count_on_the_same_space(tmp_path):
    store = store_at(tmp_path / "data")
    store.blobs.prepare()
    store.disk_budget = 10 * MIB
    pulls = store.blobs.root / "pulls"
    with working_folder(pulls, "one", "busy") as one, working_folder(pulls, "two", "busy") as two:
        require_room(store, 6 * MIB, "pulling one", one)
        with pytest.raises(DiskFull, match="6 MiB more are coming by other calls"):
            require_room(store, 5 * MIB, "pulling two", two)
        (one / "part").write_bytes(bytes(4 * MIB))
        with pytest.raises(DiskFull, match="2 MiB more are coming"):
            require_room(store, 5 * MIB, "pulling two", two)
        require_room(store, 3 * MIB, "pulling two", two)
        require_room(store, 2 * MIB, "pulling one", one)  # again, as a call that goes on does: its own does not count
        (one / "part").unlink()
    require_room(store, 9 * MIB, "pulling three")  # the others have ended
    assert [path.name for path in pulls.glob("*.room")] == []


def test_a_disk_that_fills_up_meanwhile_leaves_nothing_half_done(small_disk, bundle, tmp_path, monkeypatch):
    place, _ = small_disk
    for module in (bundling, pulling):
        monkeypatch.setattr(module, "require_room", lambda *_, **__: None)
    store = store_at(place / "data")
    with pytest.raises(DiskFull, match="no space is left"):
        import_bundle(store, bundle, Landing(), quietly, quietly, quietly)
    source = tmp_path / "large.gguf"
    source.write_bytes(LARGE)
    with pytest.raises(DiskFull, match="no space for model large"):
        pull(store, PullSettings(), Wish(given=str(source)), quietly, quietly)
    assert store.list() == ()
    assert store.blobs.digests() == []
    assert [path.name for path in (place / "data").rglob("*") if path.is_file() and path.stat().st_size] == []
    add(store, "small", ModelFormat.GGUF, small_gguf=gguf())
    assert store.verify("small")


def test_a_read_only_store_serves_what_it_has_and_takes_nothing(small_disk, tmp_path, monkeypatch):
    for module in (bundling, pulling):
        monkeypatch.setattr(module, "require_room", lambda *_, **__: None)  # 2 MiB are never room enough
    elsewhere = store_at(tmp_path / "elsewhere")
    add(elsewhere, "tiny", ModelFormat.GGUF, tiny_gguf=gguf(data=256))
    exported(elsewhere, tmp_path / "tiny", "tiny")
    source = tmp_path / "small.gguf"
    source.write_bytes(gguf(data=224))
    place, read_only = small_disk
    store = store_at(place / "data")
    kept = add(store, "kept", ModelFormat.GGUF, kept_gguf=gguf())
    read_only()
    assert store.resolve("kept").sha256 == kept.digest
    for change in (
        lambda: import_bundle(store, tmp_path / "tiny", Landing(), quietly, quietly, quietly),
        lambda: pull(store, PullSettings(), Wish(given=str(source)), quietly, quietly),
        lambda: collect(store),
        lambda: remove_model(store, "kept"),
    ):
        with pytest.raises(StorageError, match="Read-only file system"):
            change()
    assert [entry.name for entry in store.list()] == ["kept"]


def pull_has_begun(data):
    with contextlib.suppress(FileNotFoundError):  # its folder went while it was read: it ended
        return any(data.glob("models/pulls/*/*"))
    return False


def test_killed_at_any_moment_an_import_is_done_or_not_begun(tmp_path):
    made = store_at(tmp_path / "from")
    for name in ("one", "two"):
        data = b'"' + name.encode() * (8 * MIB) + b'"'
        add(made, name, ModelFormat.CHECKPOINT, config_json=b"{}", large_json=data)
    exported(made, tmp_path / "bundle")
    data = tmp_path / "to"
    BundleTrust(data).trust(KEY.public)
    command = [sys.executable, "-m", "agent", "--data-dir", str(data), "bundle", "import", str(tmp_path / "bundle")]
    random.seed(4)
    for _ in range(6):
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            while not (begun := pull_has_begun(data)) and child.poll() is None:
                time.sleep(0.002)
            child.wait(random.uniform(0, 0.15) if begun else 0)
        child.send_signal(signal.SIGKILL)
        child.wait()
        store = store_at(data)
        for entry in store.list():
            store.verify(entry.name)
            store.forget(entry.name)
    collect(store, everything=True)
    assert store.blobs.digests() == []
    assert list(data.glob("models/pulls/*")) == []
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
    assert [entry.name for entry in store.list()] == ["one", "two"]
