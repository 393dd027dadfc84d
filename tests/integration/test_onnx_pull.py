"""A generative ONNX model on its way from a folder or a hub into the store, and from there into the runtime."""

import json
import shutil

import pytest
from fakes import runtimes, tiny_onnx
from fakes.hub import hub

from agent.engine.onnx_generation_runtime import OnnxGenerationRuntime
from agent.errors import ModelRejected
from agent.models.manifest import Manifest
from agent.models.pulling import Wish, pull
from agent.models.store import ModelStore
from agent.settings import PullSettings
from agent.types import ModelFormat


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(runtimes.tiny_folder(), tmp_path / "tiny")
    (tmp_path / "tiny" / "README.md").write_text("no part of the model")
    return tmp_path / "tiny"


@pytest.fixture
def store(tmp_path):
    return ModelStore(tmp_path / "models", Manifest(()))


def get(store, given, **settings):
    return pull(store, PullSettings(**settings), Wish(given=str(given)), lambda _: None, lambda _: None)


def test_a_folder_is_taken_in_and_can_be_run(store, folder):
    model = get(store, folder).model
    names = {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in model.files} == names
    assert (model.format, model.context_tokens) == (ModelFormat.ONNX_GENERATION, tiny_onnx.CONTEXT)
    assert model.parameters > 80_000
    file = store.resolve(model.name)
    runtime = OnnxGenerationRuntime(runtimes.onnx_order(file.path, model=file))
    assert runtime.traits.parameters == model.parameters
    runtime.close()


def test_so_is_a_repository(store, folder):
    with hub() as server:
        server.files = {file.name: file.read_bytes() for file in folder.iterdir()} | {"model.bin": b"\x80"}
        model = get(store, "owner/tiny", endpoint=server.url).model
    assert model.format is ModelFormat.ONNX_GENERATION
    assert "model.bin" not in {file.name for file in model.files}


def cut(folder):
    data = folder / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-8])


def leave(folder):
    graph = folder / "model.onnx"
    graph.write_bytes(graph.read_bytes().replace(b"model.onnx.data", b"../x/model.data"))


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (cut, "bytes of weights in model.onnx.data"),
        (leave, "only files beside it may be named"),
        (lambda folder: (folder / "model.onnx.data").unlink(), "not among the model's files"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"x"), "no ONNX file"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no safetensors files, and no ONNX graph"),
        (lambda folder: (folder / "genai_config.json").write_text('{"model": 3}'), "does not describe a model"),
        (lambda folder: (folder / "config.json").symlink_to(folder / "README.md"), "holds links"),
    ],
)
def test_what_does_not_hold_is_refused(store, folder, harm, told):
    harm(folder)
    with pytest.raises(ModelRejected, match=told):
        get(store, folder)
    assert store.list() == ()


def test_a_context_that_the_description_does_not_name_is_a_careful_one(store, folder):
    described = json.loads((folder / "genai_config.json").read_text())
    described["model"]["context_length"] = "long"
    (folder / "genai_config.json").write_text(json.dumps(described))
    assert get(store, folder).model.context_tokens == 2048
