"""Models carried from one Outrider to another that was never online: trust, names, licences, secrets."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from fakes.bundles import KEY, OTHER, add, exported, quietly, store_at, two_models
from fakes.gguf import gguf

from agent.cli.main import cli
from agent.errors import DiskFull, ModelRejected, StorageError, Unauthorized, WrongState
from agent.models import bundling
from agent.models.bundle_trust import BundleTrust
from agent.models.bundling import Landing, import_bundle
from agent.models.lock_file import LockedModel, LockFile
from agent.models.manifest import load_manifest
from agent.models.pulling import Wish, pull
from agent.models.store import ModelStore
from agent.settings import PullSettings
from agent.types import ModelFormat

ROOT = Path(__file__).parents[2]
OFFLINE = subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode == 0


def outrider(data: Path, *arguments: object, stdin: str = "", code: int = 0):
    given = ["--data-dir", str(data), *map(str, arguments)]
    result = CliRunner().invoke(cli, given, input=stdin, prog_name="outrider")
    assert result.exit_code == code, result.stdout + result.stderr
    return result


def take(store: ModelStore, path: Path, **landing):
    return import_bundle(store, path, Landing(**landing), quietly, quietly, quietly)


@pytest.fixture
def two(tmp_path):
    return two_models(tmp_path / "from")


def test_everything_known_of_a_model_goes_along(two, tmp_path):
    LockFile(two.data_path).put(
        "one",
        LockedModel(
            source="hub owner/one",
            revision="a" * 40,
            files=two.get("one").files,
            licence="MIT",
            pulled_at_ms=5,
        ),
    )
    two.note("one", allowed=True)
    exported(two, tmp_path / "b")
    there = store_at(tmp_path / "to")
    done = take(there, tmp_path / "b")
    assert [model.name for model in done.models] == ["one", "two"]
    for name in ("one", "two"):
        assert there.verify(name).sha256 == two.get(name).digest
    kept, before = there.get("one"), two.get("one")
    assert (kept.source, kept.revision, kept.title) == (before.source, before.revision, before.title)
    assert not kept.allowed, "what a person allowed there was not allowed here"
    locked = LockFile(there.data_path).get("one")
    assert (locked.source, locked.revision, locked.files) == ("hub owner/one", "a" * 40, before.files)
    there.note("one", allowed=True)
    take(there, tmp_path / "b")
    assert there.get("one").allowed, "of the same bytes, what was decided here stays"
    assert list((there.blobs.root / "pulls").glob("*/")) == []


def test_files_that_two_models_share_are_carried_once(tmp_path):
    store = store_at(tmp_path / "from")
    for name in ("one", "two"):
        add(
            store, name, ModelFormat.CHECKPOINT, config_json=b'"' + b"x" * 100_000 + b'"', own_json=f'"{name}"'.encode()
        )
    assert len(exported(store, tmp_path / "b")) < 120_000
    assert len(take(store_at(tmp_path / "to"), tmp_path / "b").models) == 2


def test_a_name_that_means_other_bytes_is_not_taken_over(two, tmp_path):
    exported(two, tmp_path / "b")
    there = store_at(tmp_path / "to")
    mine = add(there, "two", ModelFormat.CHECKPOINT, config_json=b"[]")
    with pytest.raises(WrongState, match="the name two means other bytes here"):
        take(there, tmp_path / "b")
    assert there.get("one") is None
    take(there, tmp_path / "b", replace=True)
    assert there.get("two").digest != mine.digest


def test_a_name_of_the_catalogue_keeps_its_pinned_bytes(tmp_path):
    store = store_at(tmp_path / "from")
    add(store, "minilm-l6-v2", ModelFormat.CHECKPOINT, config_json=b"{}")
    exported(store, tmp_path / "b", "minilm-l6-v2")
    with pytest.raises(WrongState, match="model of the catalogue here, with other bytes"):
        take(ModelStore(tmp_path / "to" / "models", load_manifest()), tmp_path / "b", replace=True)


def test_a_lock_that_cannot_be_written_undoes_it_all(two, tmp_path, monkeypatch):
    exported(two, tmp_path / "b")
    there = store_at(tmp_path / "to")
    monkeypatch.setattr(LockFile, "put_all", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(DiskFull):
        take(there, tmp_path / "b")
    assert there.list() == ()


def test_all_models_or_none(two, tmp_path, monkeypatch):
    exported(two, tmp_path / "b")
    there = store_at(tmp_path / "to")
    add(there, "one", ModelFormat.GGUF, one_gguf=gguf(data=224))
    before = there.get("one")
    keep = ModelStore.add

    def fails(self, model, files, *, move=False):
        if model.name == "two":
            raise StorageError("the disk is gone")
        return keep(self, model, files, move=move)

    monkeypatch.setattr(ModelStore, "add", fails)
    with pytest.raises(StorageError, match="the disk is gone"):
        take(there, tmp_path / "b", replace=True)
    monkeypatch.undo()
    assert there.get("one") == before
    assert there.verify("one")
    assert there.get("two") is None
    assert LockFile(there.data_path).get("one") is None


def test_an_unknown_key_is_shown_and_trusted_by_a_person(two, tmp_path):
    exported(two, tmp_path / "b")
    data = tmp_path / "to"
    refused = outrider(data, "bundle", "import", tmp_path / "b", code=1)
    assert KEY.public.fingerprint in refused.stderr
    assert "say --trust KEY where nobody can answer" in refused.stderr
    assert str(KEY.public) in refused.stderr
    assert not store_at(data).list()
    wrong = outrider(data, "bundle", "import", tmp_path / "b", "--trust", OTHER.public, code=Unauthorized.exit_code)
    assert "not by" in wrong.stderr
    outrider(data, "bundle", "import", tmp_path / "b", stdin="y\n")
    assert "it is whole" in outrider(data, "bundle", "show", tmp_path / "b").stderr
    told = json.loads(outrider(data, "bundle", "key", "--distrust", KEY.public, "--json").stdout)
    assert told["trusted"] == []
    outrider(data, "bundle", "show", tmp_path / "b", code=1)
    (tmp_path / "key.pub").write_text(KEY.public.file)
    outrider(data, "bundle", "show", tmp_path / "b", "--trust", tmp_path / "key.pub")
    assert BundleTrust(data).keys() == (KEY.public,)


def test_ones_own_bundles_are_trusted(two, tmp_path):
    data = two.data_path
    told = outrider(data, "bundle", "export", "one", tmp_path / "b")
    assert json.loads(outrider(data, "bundle", "key", "--json").stdout)["key"] in told.stderr
    outrider(data, "bundle", "export", "one", tmp_path / "b", code=WrongState.exit_code)
    outrider(data, "bundle", "export", "two", tmp_path / "b", "--force")
    outrider(data, "models", "rm", "two")
    shown = json.loads(outrider(data, "bundle", "import", tmp_path / "b", "--json").stdout)
    assert [model["name"] for model in shown["models"]] == ["two"]


def test_a_licence_is_accepted_by_whoever_takes_it_in(two, tmp_path):
    model = two.get("one")
    locked = LockedModel(
        source=model.source, revision="", files=model.files, licence="Own", accepted_at_ms=7, pulled_at_ms=5
    )
    two.add(msgspec.structs.replace(model, licence="Own"), {})
    LockFile(two.data_path).put("one", locked)
    exported(two, tmp_path / "b")
    data = tmp_path / "to"
    BundleTrust(data).trust(KEY.public)
    refused = outrider(data, "bundle", "import", tmp_path / "b", code=1)
    assert "Do you accept the licence Own of one?" in refused.stderr
    assert not store_at(data).list()
    outrider(data, "bundle", "import", tmp_path / "b", "--accept-licence")
    assert LockFile(data).get("one").accepted_at_ms > 7
    outrider(data, "bundle", "import", tmp_path / "b")


SECRETS = """
[pull]
endpoint = "https://me:hunter2@mirror.example"
token_file = "/etc/needle-token"

[engine]
parallel = 3

[[targets]]
name = "big"
base_url = "https://big.example/v1"
model = "large"
egress = "approve"
api_key_file = "/etc/needle-key"

[[targets]]
name = "bigger"
base_url = "https://bigger.example/v1"
model = "larger"
egress = "never"
api_key_env = "NEEDLE_KEY"
"""


def test_the_configuration_goes_along_without_secrets(two, tmp_path):
    config = tmp_path / "config.toml"
    config.write_text(SECRETS)
    outrider(two.data_path, "--config", config, "bundle", "export", "one", tmp_path / "b", "--config")
    data = (tmp_path / "b").read_bytes()
    for needle in (b"needle", b"NEEDLE", b"hunter2", str(two.data_path).encode()):
        assert needle not in data
    (tmp_path / "to").mkdir()
    key = BundleTrust(two.data_path).own().public
    taken = ("bundle", "import", tmp_path / "b", "--trust", key)
    assert "left in the bundle: config.toml" in outrider(tmp_path / "to", *taken).stderr
    new = tmp_path / "new.toml"
    outrider(tmp_path / "to", *taken, "--config-to", new)
    outrider(tmp_path / "to", "--config", new, "config", "check")
    assert "parallel = 3" in new.read_text()
    assert "big.example" in new.read_text()
    again = outrider(tmp_path / "to", *taken, "--config-to", new, code=WrongState.exit_code)
    assert "never overwritten" in again.stderr


def test_wheels_go_along(two, tmp_path):
    wheels, landing = tmp_path / "wheels", tmp_path / "landing"
    wheels.mkdir()
    landing.mkdir()
    outrider(two.data_path, "bundle", "export", "one", tmp_path / "b", "--with-wheels", wheels, code=2)
    long = f"some-1.0-cp311-cp311-{'.'.join(['manylinux_2_28_x86_64'] * 5)}.whl"
    (wheels / long).write_bytes(b"wheel")
    (wheels / "source-1.0.tar.gz").write_bytes(b"source")
    outrider(two.data_path, "bundle", "export", "one", tmp_path / "b", "--with-wheels", wheels)
    outrider(two.data_path, "bundle", "import", tmp_path / "b", "--wheels", landing)
    assert {path.name: path.read_bytes() for path in landing.iterdir()} == {
        long: b"wheel",
        "source-1.0.tar.gz": b"source",
    }


def test_pull_takes_a_bundle_as_a_source(two, tmp_path):
    exported(two, tmp_path / "b")
    data = tmp_path / "to"
    BundleTrust(data).trust(KEY.public)
    told = outrider(data, "pull", tmp_path / "b", "--json")
    assert [model["name"] for model in json.loads(told.stdout)["models"]] == ["one", "two"]
    outrider(data, "pull", tmp_path / "b", "--name", "x", code=2)


def test_a_pulled_name_keeps_its_lock_when_its_bundle_comes(two, tmp_path):
    exported(two, tmp_path / "b")
    there = store_at(tmp_path / "to")
    source = tmp_path / "one.gguf"
    source.write_bytes(gguf(data=224))
    pull(there, PullSettings(), Wish(given=str(source)), quietly, quietly)
    there.forget("one")
    with pytest.raises(WrongState, match="means other bytes here, from file"):
        take(there, tmp_path / "b")


def test_a_damaged_file_is_not_exported(two, tmp_path):
    blob = two.blobs.path(two.get("one").files[0].sha256)
    blob.chmod(0o644)
    blob.write_bytes(gguf(data=224))
    with pytest.raises(ModelRejected):
        exported(two, tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.skipif(not OFFLINE, reason="no network namespace can be made here (unshare -rn): not shown to be offline")
def test_import_on_a_machine_without_any_network(two, tmp_path):
    exported(two, tmp_path / "b")
    command = ["unshare", "-rn", sys.executable, "-m", "agent", "--data-dir", str(tmp_path / "to")]
    command += ["bundle", "import", str(tmp_path / "b"), "--trust", str(KEY.public), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert [model["name"] for model in json.loads(done.stdout)["models"]] == ["one", "two"]
    assert store_at(tmp_path / "to").verify("two")


def test_two_imports_of_one_bundle_do_not_mix(two, tmp_path, monkeypatch):
    exported(two, tmp_path / "b")
    there = store_at(tmp_path / "to")
    unpack = bundling._unpack

    def meanwhile(*arguments):
        monkeypatch.setattr(bundling, "_unpack", unpack)
        with pytest.raises(WrongState, match="imported by another call"):
            take(there, tmp_path / "b")
        unpack(*arguments)

    monkeypatch.setattr(bundling, "_unpack", meanwhile)
    assert len(take(there, tmp_path / "b").models) == 2
