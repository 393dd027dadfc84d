"""An encoder in a folder becomes a model of the store, and what its files say of it holds there."""

import json

import pytest
from fakes import plain_encoders as plain

from agent.encoder import EncoderTask, Pooling
from agent.engine.onnx_encoder_runtime import OnnxEncoderRuntime
from agent.errors import ModelRejected
from agent.models.manifest import Manifest
from agent.models.pulling import Wish, pull
from agent.models.store import ModelStore
from agent.settings import PullSettings
from agent.types import ModelFormat


@pytest.fixture
def store(tmp_path):
    return ModelStore(tmp_path / "models", Manifest(()))


def get(store, folder):
    return pull(store, PullSettings(), Wish(given=str(folder)), lambda _: None, lambda _: None).model


def test_a_folder_of_sentence_transformers_is_taken_in_with_its_pooling_and_limit(store, tmp_path):
    folder = plain.embedder(tmp_path / "my-encoder")
    (folder / "README.md").write_text("no part of the model")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 7}')
    model = get(store, folder)
    assert (model.name, model.format, model.tasks) == ("my-encoder", ModelFormat.ONNX_ENCODER, ("embed",))
    assert (model.encoder.pooling, model.context_tokens) == (Pooling.CLS, 7)
    assert "README.md" not in {file.name for file in model.files}
    assert [entry.name for entry in store.served()] == ["my-encoder"]
    runtime = OnnxEncoderRuntime(store.resolve("my-encoder"), threads=1)
    assert runtime.rows([runtime.tokens.read("good")]).tolist() == [[1, 0, 0, 0]]
    assert runtime.tokens.most_tokens == 7


@pytest.mark.parametrize(
    ("make", "task"), [(plain.classifier, "classify"), (plain.tagger, "tag"), (plain.reranker, "rerank")]
)
def test_the_task_is_that_of_its_architecture(store, tmp_path, make, task):
    model = get(store, make(tmp_path / "mine"))
    assert model.tasks == (task,)
    assert OnnxEncoderRuntime(store.resolve("mine"), threads=1).spec.task is EncoderTask(task)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json is no JSON object"),
        (lambda folder: (folder / "config.json").unlink(), "no safetensors files, and no ONNX graph"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"x"), "no ONNX file"),
        (
            lambda folder: plain.embedder(folder, inputs=("input_ids", "pixel_values")),
            "has the inputs input_ids, pixel",
        ),
        (
            lambda folder: (folder / "pooling_config.json").write_text('{"pooling_mode_max_tokens": true}'),
            "the pooling is pooling_mode_max_tokens",
        ),
    ],
)
def test_what_does_not_hold_is_refused(store, tmp_path, harm, told):
    folder = plain.embedder(tmp_path / "mine")
    harm(folder)
    with pytest.raises(ModelRejected, match=told):
        get(store, folder)
    assert store.get("mine") is None


def test_a_link_is_refused(store, tmp_path):
    folder = plain.embedder(tmp_path / "mine")
    (tmp_path / "elsewhere.json").write_text("{}")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ModelRejected, match="links or folders"):
        get(store, folder)
