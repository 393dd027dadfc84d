"""``outrider pull`` with the real client of the hub against a hub on loopback."""

import hashlib
import json
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fakes.gguf import gguf
from fakes.hub import COMMIT, hub

from agent.errors import (
    DiskFull,
    InvalidRequest,
    ModelNotFound,
    ModelRejected,
    SourceUnreachable,
    Unauthorized,
    WrongState,
)
from agent.models import pull_child
from agent.models.lock_file import LockFile
from agent.models.manifest import Manifest, parse_manifest
from agent.models.pulling import Wish, pull
from agent.models.store import ModelStore
from agent.settings import PullSettings

DATA = gguf(data=1 << 20)
SHA = hashlib.sha256(DATA).hexdigest()
GIVEN = "owner/tiny:tiny-q8.gguf"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with hub() as running:
        running.files = {"tiny-q8.gguf": DATA, "README.md": b"read me", "evil.bin": b"\x80\x04"}
        yield running


@pytest.fixture
def get(server, tmp_path):
    store = ModelStore(tmp_path / "models", Manifest(()))

    def call(given=GIVEN, *, ask=lambda _: None, token_file="", offline=False, endpoint=None, manifest=None, **wish):
        used = ModelStore(tmp_path / "models", manifest) if manifest else store
        settings = PullSettings(endpoint=endpoint or server.url, token_file=token_file, offline=offline)
        return pull(used, settings, Wish(given=given, **wish), ask, lambda _: None)

    call.store = store
    call.lock = LockFile(tmp_path)
    return call


def entry(**more):
    model = {
        "name": "tiny", "title": "Tiny", "licence": "Own-1.0", "accept": True, "context_tokens": 4096,
        "format": "gguf", "family": "llama", "files": [{"name": "tiny-q8.gguf"}],
        "source": {"kind": "hub", "repository": "owner/tiny", "pin": "first-pull"}, **more,
    }  # fmt: skip
    return parse_manifest(json.dumps({"schema": 1, "models": [model]}))


def parts(store):
    return [path for path in (store.blobs.root / "pulls").rglob("*") if path.suffix == ".part"]


def test_the_first_pull_is_verified_and_pinned_and_the_next_downloads_nothing(get, server):
    seen = []
    outcome = get(ask=seen.append)
    assert (seen[0].revision, seen[0].bytes, seen[0].licence) == (COMMIT, len(DATA), "apache-2.0")
    assert outcome.newly_locked
    assert (outcome.model.digest, outcome.model.revision, outcome.model.context_tokens) == (SHA, COMMIT, 4096)
    locked = get.lock.get("tiny-q8")
    assert (locked.revision, locked.files[0].sha256) == (COMMIT, SHA)
    assert stat.S_IMODE(get.lock.path.stat().st_mode) == 0o600
    file = get.store.resolve("tiny-q8")
    assert hashlib.sha256(Path(file.path).read_bytes()).hexdigest() == SHA
    asked = len(server.requests)
    assert get().was_there
    assert len(server.requests) == asked


def test_a_cut_connection_goes_on_where_it_was(get, server):
    server.cut_after = [300_000, 300_000]
    assert get().model.digest == SHA
    ranges = [headers.get("Range") for _, headers in server.downloads()]
    assert ranges == [None, "bytes=262144-", "bytes=524288-"]


def test_a_server_without_ranges_is_taken_from_the_start(get, server):
    server.cut_after, server.ranges = [300_000], False
    assert get().model.digest == SHA


@pytest.mark.parametrize("sent", [DATA[:-1] + b"\0", b"XXXX" + DATA[4:]], ids=["weights", "header"])
def test_wrong_bytes_go_to_quarantine_and_leave_nothing_visible(get, server, sent):
    server.sent["tiny-q8.gguf"] = sent
    with pytest.raises(ModelRejected, match="SHA-256"):
        get()
    assert get.store.get("tiny-q8") is None
    assert get.lock.get("tiny-q8") is None
    assert "SHA-256" in next(iter(get.store.blobs.quarantined())).reason
    server.sent.clear()
    assert get().model.digest == SHA


def test_a_file_that_is_no_model_is_refused_and_fetched_anew_when_it_is_mended(get, server):
    server.files["tiny-q8.gguf"] = b"XXXX" + DATA[4:]
    with pytest.raises(ModelRejected, match="GGUF"):
        get()
    assert get.store.get("tiny-q8") is None
    server.files["tiny-q8.gguf"] = DATA
    assert get().model.digest == SHA


@pytest.mark.parametrize("sent", [DATA[:-100], DATA + b"more"], ids=["short", "long"])
def test_another_size_is_refused(get, server, sent):
    server.sent["tiny-q8.gguf"] = sent
    with pytest.raises(ModelRejected, match="size"):
        get()
    assert get.store.get("tiny-q8") is None


def test_a_small_file_is_held_to_the_digest_of_its_repository(get, server):
    checkpoint(server)
    server.sent["config.json"] = server.files["config.json"].replace(b"512", b"513")
    with pytest.raises(ModelRejected, match=r"config\.json is not what its repository says"):
        get("owner/tiny")
    server.sent.clear()
    made = get("owner/tiny").model
    assert (made.format, made.context_tokens, made.parameters) == ("checkpoint", 512, 8)


def checkpoint(server, **config):
    header = json.dumps({"w": {"dtype": "F16", "shape": [2, 4], "data_offsets": [0, 16]}}).encode()
    server.files = {
        "config.json": json.dumps(
            {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 512, **config}
        ).encode(),
        "model.safetensors": struct.pack("<Q", len(header)) + header + b"\1" * 16,
        "modeling_evil.py": b"boom",
    }


@pytest.mark.parametrize(
    ("config", "why"),
    [({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"), ({"auto_map": {"a": "b"}}, "code of its own")],
)
def test_a_checkpoint_that_cannot_be_used_is_refused(get, server, config, why):
    checkpoint(server, **config)
    with pytest.raises(ModelRejected, match=why):
        get("owner/tiny")
    assert get.store.get("tiny") is None


def test_killed_in_the_middle_it_goes_on_and_never_looks_whole(get, server, tmp_path):
    """The whole command is killed, again and again; its child ends with it."""
    configuration = tmp_path / "outrider.toml"
    configuration.touch()
    for _ in range(4):
        server.pause, server.half, server.gone = True, threading.Event(), threading.Event()
        command = [sys.executable, "-m", "agent", "--data-dir", str(tmp_path), "pull", GIVEN, "--json"]
        environment = {**os.environ, "HF_ENDPOINT": server.url, "OUTRIDER_CONFIG": str(configuration)}
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as child:
            assert server.half.wait(30)
            until = time.monotonic() + 30
            while not any(part.stat().st_size for part in get.store.blobs.root.rglob("*.part")):
                assert time.monotonic() < until, "nothing of the half is on disk"
                time.sleep(0.02)
            child.send_signal(signal.SIGKILL)
        assert server.gone.wait(30)
        assert get.store.get("tiny-q8") is None
        assert not list((get.store.blobs.root / "blobs").glob("*"))
        assert get.lock.get("tiny-q8") is None
    server.pause = False
    assert get().model.digest == SHA
    assert server.downloads()[-1][1].get("Range")
    assert parts(get.store) == []


def test_a_commit_that_moved_on_is_still_the_pinned_one(get, server):
    get()
    get.store.forget("tiny-q8")
    server.commit = "d" * 40
    with pytest.raises(ModelNotFound, match="no revision"):
        get()
    server.files["tiny-q8.gguf"] = gguf(data=2048)
    assert get(update=True).model.revision == "d" * 40
    assert get.lock.get("tiny-q8").revision == "d" * 40


def test_other_bytes_under_the_pinned_commit_are_refused(get, server):
    get()
    get.store.forget("tiny-q8")
    server.files["tiny-q8.gguf"] = gguf(data=2048)
    with pytest.raises(WrongState, match="not what was pinned"):
        get()


def test_an_entry_is_pinned_or_refused_when_that_is_required(get):
    with pytest.raises(InvalidRequest, match="not pinned"):
        get("tiny", manifest=entry(), require_pinned=True)
    assert get("tiny", manifest=entry()).newly_locked
    get.store.forget("tiny")
    assert get("tiny", manifest=entry(), require_pinned=True).model.digest == SHA


def test_a_licence_is_asked_for_once_and_recorded(get):
    offers = []

    def decline(offer):
        offers.append(offer)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get("tiny", manifest=entry(), ask=decline)
    assert offers[0].must_accept
    assert get.store.get("tiny") is None
    get("tiny", manifest=entry())
    assert get.lock.get("tiny").accepted_at_ms
    get.store.forget("tiny")
    again = []
    get("tiny", manifest=entry(), ask=again.append)
    assert not again[0].must_accept


def test_a_gated_repository_needs_its_token_and_nobody_else_may_read_it(get, server, tmp_path):
    server.gated, server.token = True, "hf_secret"
    with pytest.raises(Unauthorized, match=r"gated.*HF_TOKEN") as caught:
        get()
    assert "hf_secret" not in str(caught.value)
    token = tmp_path / "token"
    token.write_text("hf_secret\n")
    token.chmod(0o600)
    assert get(token_file=str(token)).model.digest == SHA


def test_a_token_never_goes_to_a_plain_url(get, server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    get(f"{server.url}/plain/tiny-q8.gguf")
    assert all("Authorization" not in headers for _, _, headers in server.requests)


def test_offline_means_that_no_connection_is_opened(get, server, monkeypatch):
    monkeypatch.setattr(pull_child.subprocess, "Popen", lambda *_, **__: pytest.fail("a child was started"))
    with pytest.raises(SourceUnreachable, match="--offline"):
        pull(get.store, PullSettings(), Wish(given=GIVEN, offline=True), lambda _: None, lambda _: None)
    with pytest.raises(SourceUnreachable, match=r"pull\.offline"):
        get(offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceUnreachable, match="HF_HUB_OFFLINE"):
        get()
    assert server.requests == []


def test_offline_a_file_is_taken_from_a_stick_and_pinned(get, tmp_path):
    stick = tmp_path / "stick"
    stick.mkdir()
    (stick / "My Model.gguf").write_bytes(DATA)
    outcome = get(str(stick / "My Model.gguf"), offline=True)
    assert (outcome.model.name, outcome.model.digest) == ("my-model", SHA)
    get.store.forget("my-model")
    (stick / "My Model.gguf").write_bytes(gguf(data=2048))
    with pytest.raises(WrongState, match="not what was pinned"):
        get(str(stick / "My Model.gguf"))


def test_a_folder_with_a_checkpoint_is_taken_in(get, server, tmp_path):
    checkpoint(server)
    folder = tmp_path / "ckpt"
    folder.mkdir()
    for name, data in server.files.items():
        (folder / name).write_bytes(data)
    assert {file.name for file in get(str(folder)).model.files} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize(
    ("given", "error", "why"),
    [
        ("smolm", ModelNotFound, "there is no model"),
        ("owner/none", ModelNotFound, "no repository"),
        ("owner/tiny:gone.gguf", ModelNotFound, "no file gone.gguf; it has tiny-q8.gguf"),
        ("owner/tiny@gone", ModelNotFound, "no revision"),
        ("owner/tiny:evil.bin", ModelRejected, "evil.bin is refused"),
        ("owner/tiny:../x.gguf", ModelNotFound, "no file"),
        ("http://models.example/x.gguf", InvalidRequest, "refused"),
        ("./nothing.gguf", ModelNotFound, "no file or folder"),
    ],
)
def test_bad_input_is_named(get, given, error, why):
    with pytest.raises(error, match=why):
        get(given)


def test_pickles_are_never_downloaded(get, server):
    server.files = {"pytorch_model.bin": b"x", "config.json": b"{}"}
    with pytest.raises(ModelRejected, match="pickles"):
        get("owner/tiny")
    assert server.downloads() == []


def test_a_model_above_the_class_is_refused_before_the_download(get, server):
    server.parameters = 7_000_000_000
    with pytest.raises(InvalidRequest, match=r"7\.0 billion.*3\.5 billion.*--force"):
        get()
    assert server.downloads() == []
    assert get(force=True).model.digest == SHA


def test_a_full_disk_is_seen_before_the_download(get, server, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 30, 1 << 30, 1 << 20))
    with pytest.raises(DiskFull, match="MiB are free"):
        get()
    assert server.downloads() == []


def test_a_busy_server_is_asked_again_and_a_broken_one_is_named(get, server):
    server.statuses = [429]
    assert get().model.digest == SHA
    get.store.forget("tiny-q8")
    server.statuses = [503]
    with pytest.raises(SourceUnreachable, match="503"):
        get()


def test_nobody_there(get):
    with pytest.raises(SourceUnreachable, match="cannot be reached"):
        get(endpoint="http://127.0.0.1:9")


def test_a_name_that_is_taken_is_not_replaced(get):
    get(name="mine")
    with pytest.raises(WrongState, match="taken by hub owner/tiny"):
        get("owner/other", name="mine")
