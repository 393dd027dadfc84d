"""A bundle is accepted in exactly one form: whatever differs from it, by a bit or by intent, is refused."""

import io
import os
import tarfile

import pytest
from fakes.bundles import KEY, OTHER, exported, forged, opened, quietly, store_at, two_models

from agent.errors import InvalidRequest, ModelRejected, Unauthorized
from agent.models.bundle_file import header, is_bundle
from agent.models.bundling import Landing, Parcel, export_bundle, import_bundle, read_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    return exported(two_models(folder / "data"), folder / "bundle")


@pytest.fixture
def refuse(tmp_path):
    """Import these bytes into an empty store; return the reason of the refusal."""
    store = store_at(tmp_path / "to")

    def refused(data: bytes) -> str:
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(ModelRejected) as caught:
            import_bundle(store, tmp_path / "bad", Landing(), quietly, quietly, quietly)
        assert store.list() == ()
        assert [path for path in (tmp_path / "to").rglob("*") if path.is_file() and path.suffix != ".lock"] == []
        return str(caught.value)

    return refused


def test_any_tar_reads_it_and_the_same_models_give_the_same_bytes(tmp_path, bundle):
    with tarfile.open(fileobj=io.BytesIO(bundle)) as tar:
        entries = tar.getmembers()
    assert [entry.name for entry in entries[:3]] == [
        "outrider-bundle.pub",
        "outrider-bundle.json",
        "outrider-bundle.json.minisig",
    ]
    assert all(entry.isreg() and entry.mtime == 0 and entry.uid == 0 for entry in entries)
    assert is_bundle(bundle)
    assert exported(two_models(tmp_path / "data"), tmp_path / "again") == bundle


def test_no_flipped_bit_gets_in(tmp_path, bundle):
    """One bit of every byte, whatever the byte is for."""
    path = tmp_path / "flipped"
    path.write_bytes(bundle)
    accepted = []
    with path.open("r+b", buffering=0) as file:
        for at in range(len(bundle)):
            os.pwrite(file.fileno(), bytes([bundle[at] ^ 1 << at % 8]), at)
            try:
                read_bundle(path, quietly, quietly)
                accepted.append(at)
            except ModelRejected:
                pass
            os.pwrite(file.fileno(), bundle[at : at + 1], at)
    assert accepted == []
    read_bundle(path, quietly, quietly)


def test_neither_cut_off_nor_with_more_at_the_end(refuse, bundle):
    for length in (0, 1, 511, 512, 513, 1500, len(bundle) // 2, len(bundle) - 1024, len(bundle) - 1):
        assert refuse(bundle[:length])
    assert "does not end where it must" in refuse(bundle + b"\0")
    assert "does not end where it must" in refuse(bundle[:-1024] + header("evil", 0) + bytes(1024))


def test_a_hostile_tar_is_refused_whatever_it_holds(refuse, bundle):
    _, members = opened(bundle)
    kinds = {
        "absolute": tarfile.TarInfo("/etc/passwd"),
        "climbing": tarfile.TarInfo("../../up"),
        "link": tarfile.TarInfo("blobs/link"),
        "hard link": tarfile.TarInfo("blobs/hard"),
        "device": tarfile.TarInfo("blobs/device"),
        "pipe": tarfile.TarInfo("blobs/pipe"),
        "folder": tarfile.TarInfo("blobs"),
        "another user's": tarfile.TarInfo("config.toml"),
    }
    kinds["link"].type, kinds["link"].linkname = tarfile.SYMTYPE, "/etc/passwd"
    kinds["hard link"].type, kinds["hard link"].linkname = tarfile.LNKTYPE, "../../../x"
    kinds["device"].type, kinds["pipe"].type, kinds["folder"].type = tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE
    kinds["another user's"].uid = 1000
    first = next(iter(members))
    for kind, entry in kinds.items():
        head = entry.tobuf(tarfile.USTAR_FORMAT)
        for data in (
            head + bundle,
            bundle.replace(header(first, len(members[first])), head, 1),
            bundle[:-1024] + head + bundle[-1024:],
        ):
            assert refuse(data), kind
    long = tarfile.TarInfo("x" * 300).tobuf(tarfile.PAX_FORMAT)
    assert refuse(long + bundle)
    huge = header("outrider-bundle.pub", 0o77777777777)
    assert "at most 65536 are allowed" in refuse(huge + b"x" * 1024)
    assert "not where it must be" in refuse(b"not a tar at all" * 100)


def test_a_signed_index_that_lies_is_refused_too(refuse, bundle):
    """The key may be trusted and its owner's device be in the wrong hands."""
    index, members = opened(bundle)
    one = index["models"][0]["model"]
    blob = f"blobs/{one['files'][0]['sha256']}"

    def with_(**changes) -> dict:
        return {**index, **changes}

    def renamed(name: str) -> dict:
        model = {**one, "files": [{**one["files"][0], "name": name}]}
        return with_(models=[{**index["models"][0], "model": model}, *index["models"][1:]])

    lies = {
        "newer Outrider; this one reads 1": with_(schema=2),
        "unknown field": with_(extra=1),
        "models": with_(models=[]),
        "a name is used twice": with_(models=[*index["models"], index["models"][0]]),
        "a name is used twice ": with_(members=[*index["members"], index["members"][0]]),
        "cannot be a member": with_(members=[*index["members"], {"name": "../x", "bytes": 0, "sha256": "0" * 64}]),
        "is not in it": with_(members=[m for m in index["members"] if m["name"] != blob]),
        "cannot be a member ": with_(members=[{**m, "file": "evil.whl"} for m in index["members"]]),
        "cannot be a member  ": with_(
            members=[*index["members"], {"name": f"wheels/{'0' * 64}", "bytes": 0, "sha256": "0" * 64}]
        ),
        "file`": with_(
            members=[
                *index["members"],
                {"name": f"wheels/{'0' * 64}", "bytes": 0, "sha256": "0" * 64, "file": "../x.whl"},
            ]
        ),
        "no model has": with_(models=index["models"][1:]),
        "files": renamed("../../one.gguf"),
        "name`": with_(models=[{"model": {**one, "name": "../one"}}]),
        "Expected": with_(members=[{**m, "bytes": 1 << 60} for m in index["members"]]),
        "damaged or altered": with_(members=index["members"][::-1]),
    }
    for reason, index_ in lies.items():
        assert reason.strip() in refuse(forged(index_, members)), reason
    other = {name: b"x" * len(data) for name, data in members.items()}
    assert "its SHA-256 is" in refuse(forged(index, other))
    assert refuse(forged(index, members, key=OTHER).replace(OTHER.public.file.encode(), KEY.public.file.encode()))


def test_files_that_are_not_what_their_format_says_are_refused(refuse, bundle):
    """Digest and signature are right, and the file would still harm who loads it."""
    import hashlib

    index, _ = opened(bundle)
    bad = b"GGUF" + b"\xff" * 100
    digest = hashlib.sha256(bad).hexdigest()
    model = index["models"][0]["model"]
    model["files"] = [{"name": "one.gguf", "bytes": len(bad), "sha256": digest}]
    index["models"] = [{"model": model}]
    index["members"] = [{"name": f"blobs/{digest}", "bytes": len(bad), "sha256": digest}]
    assert "version" in refuse(forged(index, {f"blobs/{digest}": bad}))


def test_the_key_is_asked_about_before_anything_is_read(tmp_path, bundle):
    def decide(key) -> None:
        assert key == KEY.public
        raise Unauthorized("not trusted")

    (tmp_path / "b").write_bytes(bundle[:6000])  # cut off right behind: never reached
    with pytest.raises(Unauthorized):
        read_bundle(tmp_path / "b", decide, quietly)


def test_an_export_is_there_whole_or_not_at_all(tmp_path):
    store = two_models(tmp_path / "data")
    target = tmp_path / "out" / "bundle"
    with pytest.raises(Exception, match="No such file"):
        export_bundle(store, ["one"], target, KEY, Parcel(), quietly)
    target.parent.mkdir()

    def stop(_) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_bundle(store, ["one"], target, KEY, Parcel(), stop)
    assert list(target.parent.iterdir()) == []
    for name in ("né.whl", "a b.tar.gz"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(InvalidRequest, match="cannot be the name of a wheel"):
            export_bundle(store, ["one"], target, KEY, Parcel(wheels=(tmp_path / name,)), quietly)
    large = tmp_path / "large.whl"
    with large.open("wb") as file:
        file.truncate(9 << 30)
    with pytest.raises(InvalidRequest, match="more than 8 GiB"):
        export_bundle(store, ["one"], target, KEY, Parcel(wheels=(large,)), quietly)
