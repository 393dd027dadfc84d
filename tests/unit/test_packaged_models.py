"""Models out of several installed packages: files of their own, a file in parts, a licence to accept."""

import hashlib
from pathlib import Path

import msgspec
import pytest
from fakes.gguf import gguf

from agent.errors import InvalidRequest, ModelNotFound, ModelRejected
from agent.models.entry import ModelState
from agent.models.lock_file import LockFile
from agent.models.manifest import Manifest, ManifestFile, ModelSpec, PackagePart, PackageSource, load_manifest
from agent.models.packaged import packaged_files
from agent.models.pulling import Wish, pull
from agent.models.store import ModelStore
from agent.settings import PullSettings
from agent.types import ModelFormat

GOOD = gguf()
PARTS = (GOOD[:100], GOOD[100:101], GOOD[101:])


def install(site: Path, name: str, files: dict[str, bytes]) -> None:
    module = name.replace("-", "_")
    (site / module).mkdir(parents=True)
    (site / module / "__init__.py").write_text("raise ImportError('a model package is never imported')")
    (site / f"{module}-1.0.dist-info").mkdir()
    (site / f"{module}-1.0.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")
    for file, data in files.items():
        (site / module / file).write_bytes(data)


def part(distribution: str, file: str) -> PackagePart:
    return PackagePart(distribution=distribution, version="1.0", path=f"{distribution.replace('-', '_')}/{file}")


def promised(name: str, data: bytes) -> ManifestFile:
    return ManifestFile(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def in_parts(**changes) -> ModelSpec:
    spec = ModelSpec(
        name="cut",
        title="Cut",
        licence="Own",
        context_tokens=4096,
        format=ModelFormat.GGUF,
        family="llama",
        files=(promised("cut.gguf", GOOD),),
        source=PackageSource(files={"cut.gguf": tuple(part(f"cut-{at}", "part") for at in range(3))}),
    )
    return msgspec.structs.replace(spec, **changes)


ENCODER = ModelSpec(
    name="pair",
    title="Pair",
    licence="MIT",
    context_tokens=256,
    format=ModelFormat.CHECKPOINT,
    family="bert",
    files=(promised("config.json", b"{}"), promised("vocab.txt", b"a")),
    source=PackageSource(files={"config.json": (part("one", "c"),), "vocab.txt": (part("two", "v"),)}),
)


@pytest.fixture
def site(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    for at, data in enumerate(PARTS):
        install(folder, f"cut-{at}", {"part": data})
    install(folder, "one", {"c": b"{}"})
    install(folder, "two", {"v": b"a"})
    monkeypatch.syspath_prepend(folder)
    return folder


def store_of(tmp_path, *specs: ModelSpec) -> ModelStore:
    return ModelStore(tmp_path / "data" / "models", Manifest(specs))


def test_a_file_in_parts_becomes_one(tmp_path, site):
    found = store_of(tmp_path, in_parts()).resolve("cut")
    assert Path(found.path).read_bytes() == GOOD
    assert list((tmp_path / "data" / "models" / "incoming").iterdir()) == []


def test_parts_in_the_wrong_order_are_refused(tmp_path, site):
    (site / "cut_1" / "part").write_bytes(PARTS[1] + b"x")
    store = store_of(tmp_path, in_parts())
    with pytest.raises(ModelRejected, match=r"reinstall cut-0==1.0 cut-1==1.0 cut-2==1.0"):
        store.resolve("cut")
    assert store.blobs.digests() == []


def test_each_file_has_its_own_package(tmp_path, site):
    store = store_of(tmp_path, ENCODER)
    entry = store.show("pair")
    assert entry.state is ModelState.AVAILABLE
    found = store.resolve("pair")
    assert {path.name: path.read_bytes() for path in Path(found.path).iterdir()} == {
        "config.json": b"{}",
        "vocab.txt": b"a",
    }
    assert found.sha256 == entry.sha256 == store.show("pair").sha256
    assert entry.source == "package one 1.0 and 1 more"


def test_only_the_missing_package_is_asked_for(tmp_path, site):
    (site / "two" / "v").unlink()
    store = store_of(tmp_path, ENCODER)
    assert packaged_files(ENCODER) is None
    assert store.show("pair").state is ModelState.MISSING
    with pytest.raises(ModelNotFound, match=r"--no-deps two==1.0$"):
        store.resolve("pair")


def test_a_licence_is_accepted_before_the_first_use(tmp_path, site):
    spec = in_parts(accept=True)
    store = store_of(tmp_path, spec)
    assert store.show("cut").state is ModelState.MISSING
    with pytest.raises(ModelNotFound, match="outrider pull cut"):
        store.resolve("cut")

    def decline(offer):
        assert offer.must_accept
        raise InvalidRequest("declined")

    with pytest.raises(InvalidRequest, match="declined"):
        pull(store, PullSettings(), Wish(given="cut"), decline, lambda _: None)
    assert store.get("cut") is None
    kept = pull(store, PullSettings(), Wish(given="cut"), lambda _: None, lambda _: None)
    assert kept.newly_locked
    assert LockFile(tmp_path / "data").get("cut").accepted_at_ms
    assert store.resolve("cut").name == "cut"

    store.forget("cut")
    pull(store, PullSettings(), Wish(given="cut"), _not_asked, lambda _: None)


def _not_asked(offer):
    assert not offer.must_accept, "accepted once is accepted"


@pytest.mark.parametrize("name", ["minilm-l6-v2-int8", "minilm-l6-v2"])
def test_the_embedded_encoder_is_taken_in(tmp_path, name):
    store = ModelStore(tmp_path / "models", load_manifest())
    if store.show(name).state is not ModelState.AVAILABLE:
        pytest.skip("the packages of the encoder are not installed here: scripts/environment.py installs them")
    found = store.resolve(name)
    there = {path.name for path in Path(found.path).iterdir()}
    assert {"tokenizer.json", "config.json", "pooling_config.json"} < there
    assert store.show(name).state is ModelState.INSTALLED
