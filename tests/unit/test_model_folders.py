"""A model of several files is taken in whole, has a folder of its verified files, and a sealed record."""

import errno
import hashlib
from pathlib import Path

import msgspec
import pytest

from agent.errors import InvalidRequest, ModelNotFound, ModelRejected, StorageError
from agent.models import blobs as blobs_module
from agent.models.artifact import StoredFile, StoredModel
from agent.models.entry import ModelState
from agent.models.manifest import Manifest
from agent.models.store import ModelStore
from agent.types import ModelFormat

HEADER = b'{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'
WEIGHTS = len(HEADER).to_bytes(8, "little") + HEADER + b"1234"


@pytest.fixture
def store(tmp_path):
    return ModelStore(tmp_path / "models", Manifest(()))


def folder_model(tmp_path, **changes):
    texts = {"config.json": b"{}", "model.safetensors": WEIGHTS}
    files = {}
    for name, data in texts.items():
        files[name] = tmp_path / name
        files[name].write_bytes(data)
    stored = tuple(
        StoredFile(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()) for name, data in texts.items()
    )
    model = StoredModel(
        name="folder",
        title="Folder",
        format=ModelFormat.CHECKPOINT,
        files=stored,
        licence="MIT",
        source="folder",
        context_tokens=128,
    )
    return msgspec.structs.replace(model, **changes), files


def test_a_model_of_several_files_has_a_folder_of_its_own(store, tmp_path):
    model, files = folder_model(tmp_path)
    store.add(model, files)
    found = store.resolve("folder")
    assert {path.name: path.read_bytes() for path in Path(found.path).iterdir()} == {
        "config.json": b"{}",
        "model.safetensors": WEIGHTS,
    }
    assert found.sha256 == model.digest
    assert store.show("folder").state is ModelState.INSTALLED
    assert "folder" in [entry.name for entry in store.list()]


def test_a_file_that_cannot_be_read_is_named(store, tmp_path):
    model, files = folder_model(tmp_path)
    with pytest.raises(StorageError, match=r"/gone: No such file"):
        store.add(model, files | {"config.json": tmp_path / "gone"})


def test_a_file_that_a_stopped_call_left_read_only_is_taken_in(store, tmp_path):
    model, files = folder_model(tmp_path)
    files["config.json"].chmod(0o444)
    store.add(model, files, move=True)
    assert store.resolve("folder").sha256 == model.digest


def test_two_models_share_their_blobs(store, tmp_path):
    model, files = folder_model(tmp_path)
    store.add(model, files)
    store.add(msgspec.structs.replace(model, name="twin"), files)
    assert len(store.blobs.digests()) == 2
    store.forget("folder")
    assert store.resolve("twin").sha256 == model.digest
    with pytest.raises(ModelNotFound):
        store.resolve("folder")


def test_one_damaged_file_of_several_is_never_served(store, tmp_path):
    model, files = folder_model(tmp_path)
    store.add(model, files)
    weights = Path(store.resolve("folder").path) / "model.safetensors"
    weights.chmod(0o600)
    weights.write_bytes(WEIGHTS[:-1] + b"x")
    for _ in range(2):
        with pytest.raises(ModelRejected, match=r"model\.safetensors of model folder"):
            store.resolve("folder")


@pytest.mark.parametrize("change", ["replaced", "removed", "a link elsewhere", "another's folder"])
def test_what_lies_in_the_folder_of_a_model_are_its_verified_files(store, tmp_path, change):
    model, files = folder_model(tmp_path)
    store.add(model, files)
    config = Path(store.resolve("folder").path) / "config.json"
    before = config.read_bytes()
    if change == "another's folder":
        config.parent.rename(tmp_path / "away")
    else:
        config.unlink()
    if change == "replaced":
        config.write_bytes(before)
        config.write_bytes(b"[1]"[: len(before)])
    elif change == "a link elsewhere":
        (tmp_path / "evil").write_bytes(before)
        config.symlink_to(tmp_path / "evil")
    assert Path(store.resolve("folder").path) == config.parent
    assert config.read_bytes() == before
    assert not config.is_symlink()
    assert [path.name for path in config.parent.parent.iterdir()] == [config.parent.name]


def test_a_damaged_model_that_is_taken_in_again_is_served_whole(store, tmp_path):
    model, files = folder_model(tmp_path)
    store.add(model, files)
    weights = Path(store.resolve("folder").path) / "model.safetensors"
    weights.chmod(0o600)
    weights.write_bytes(WEIGHTS[:-1] + b"x")
    with pytest.raises(ModelRejected):
        store.resolve("folder")
    store.add(model, files)
    store.resolve("folder")
    assert weights.read_bytes() == WEIGHTS


def test_a_file_system_without_links_gets_copies(store, tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(blobs_module.os, "link", refused)
    model, files = folder_model(tmp_path)
    store.add(model, files)
    config = Path(store.resolve("folder").path) / "config.json"
    made = config.stat().st_ino
    store.resolve("folder")
    assert config.stat().st_ino == made, "it is not copied anew each time"
    config.chmod(0o600)
    config.write_bytes(b"[]")
    store.resolve("folder")
    assert config.read_bytes() == b"{}"


def test_all_of_a_model_or_nothing(store, tmp_path):
    model, files = folder_model(tmp_path)
    files["model.safetensors"].write_bytes(WEIGHTS[:-1] + b"x")
    with pytest.raises(ModelRejected, match="damaged or altered"):
        store.add(model, files)
    assert store.get("folder") is None


def test_a_damaged_record_is_named(store, tmp_path):
    model, files = folder_model(tmp_path)
    store.add(model, files)
    (tmp_path / "models" / "refs" / "folder.json").write_text("{")
    with pytest.raises(StorageError, match=r"folder\.json is damaged"):
        store.resolve("folder")


def test_a_flipped_bit_anywhere_in_a_record_is_seen(store, tmp_path):
    model, files = folder_model(tmp_path)
    store.add(msgspec.structs.replace(model, chat_template="{{ messages[0].content }}"), files)
    path = tmp_path / "models" / "refs" / "folder.json"
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(StorageError, match="is damaged"):
            store.get("folder")
    path.write_bytes(whole.partition(b"\n")[0])  # as earlier releases wrote it
    assert store.get("folder") is not None


def test_a_name_that_could_not_be_read_again_is_refused(store, tmp_path):
    model, files = folder_model(tmp_path, name="My Model")
    with pytest.raises(InvalidRequest, match="My Model"):
        store.add(model, files)
    assert store.get("My Model") is None
