"""One flipped bit in any file of a model is seen, on its way here and where it lies; nothing is then served."""

import json
import struct

import pytest
from fakes import tiny_encoder, tiny_gguf
from fakes.hub import hub

from agent.errors import ModelRejected
from agent.models.artifact import StoredModel
from agent.models.blobs import described
from agent.models.manifest import Manifest
from agent.models.pulling import Wish, pull
from agent.models.store import ModelStore
from agent.settings import PullSettings
from agent.types import ModelFormat

CHECKPOINT = ("config.json", "model.safetensors", "tokenizer.json")
ENCODER = ("config.json", "model.onnx", "tokenizer.json")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def store(tmp_path):
    return ModelStore(tmp_path / "models", Manifest(()))


def flipped(data):
    """Flip the lowest bit of the byte in the middle."""
    changed = bytearray(data)
    changed[len(changed) // 2] ^= 1
    return bytes(changed)


def checkpoint(folder):
    folder.mkdir()
    header = json.dumps({"w": {"dtype": "F16", "shape": [2, 4], "data_offsets": [0, 16]}}).encode()
    config = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\1" * 16)
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": {"type": "BPE"}}))
    return folder


@pytest.mark.parametrize("name", [*CHECKPOINT, "tiny.gguf"])
def test_on_the_way_from_a_hub(store, tmp_path, name):
    folder = checkpoint(tmp_path / "checkpoint")
    if name.endswith(".gguf"):
        tiny_gguf.write(folder / name)
    with hub() as server:
        server.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        server.sent = {name: flipped(server.files[name])}

        def get():
            return pull(
                store, PullSettings(endpoint=server.url), Wish(given="owner/tiny"), lambda _: None, lambda _: None
            )

        with pytest.raises(ModelRejected):
            get()
        assert store.get("tiny") is None
        server.sent = {}
        assert get().model == store.get("tiny")


@pytest.mark.parametrize(
    ("form", "name"),
    [
        (ModelFormat.GGUF, "tiny.gguf"),
        *((ModelFormat.CHECKPOINT, name) for name in CHECKPOINT),
        *((ModelFormat.ONNX_ENCODER, name) for name in ENCODER),
    ],
)
def test_where_it_lies(store, tmp_path, form, name):
    folder = tmp_path / "files"
    if form is ModelFormat.GGUF:
        folder.mkdir()
        tiny_gguf.write(folder / name)
    elif form is ModelFormat.CHECKPOINT:
        checkpoint(folder)
    else:
        tiny_encoder.write(folder)
    files = {path.name: path for path in sorted(folder.iterdir())}
    model = StoredModel(
        name="tiny",
        title="Tiny",
        format=form,
        files=tuple(described(path, name) for name, path in files.items()),
        licence="MIT",
        source="a test",
        context_tokens=512,
        added_at_ms=0,
    )
    store.add(model, files)
    assert store.resolve("tiny").sha256 == model.digest
    blob = store.blobs.path(next(file.sha256 for file in model.files if file.name == name))
    damaged = flipped(blob.read_bytes())
    blob.chmod(0o600)
    blob.write_bytes(damaged)
    with pytest.raises(ModelRejected, match=name):
        store.resolve("tiny")
    with pytest.raises(ModelRejected):  # it does not come back by itself
        store.resolve("tiny")
