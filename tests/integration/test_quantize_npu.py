"""Encoders for an NPU: the graph that is compiled there, made and compared here."""

from collections import Counter

import numpy as np
import onnx
import pytest
from fakes import tiny_encoder, tiny_gguf

from agent.errors import InvalidRequest
from agent.models.converting import quantize_any
from agent.models.quantizing import Wish
from agent.models.recipes.golden import Encoder
from agent.models.store import open_store


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "data")


def made(store, source, **more):
    return quantize_any(store, store.blobs.root.parent, Wish(source=str(source), target="npu", **more), lambda _: None)


def test_an_encoder_gets_a_fixed_length_and_16_bit_activations_and_is_labelled(store, tmp_path):
    model = made(store, tiny_encoder.write(tmp_path / "tiny")).model
    assert (model.name, model.context_tokens) == ("tiny-npu", 128)
    assert model.making.recipe == "onnx-npu for npu"
    assert "unverified on hardware" in store.show("tiny-npu").remark
    assert "not compiled: the environment npu is not there" in model.remark
    graph = onnx.load(f"{store.resolve('tiny-npu').path}/model.onnx").graph
    kinds = Counter(node.op_type for node in graph.node)
    assert kinds["Gelu"] == 1
    assert not {"Erf", "Shape", "Where"} & kinds.keys()
    assert [[size.dim_value for size in value.type.tensor_type.shape.dim] for value in graph.input] == [[1, 128]] * 2
    zero_points = [tensor for tensor in graph.initializer if tensor.name.endswith("_zero_point")]
    assert {tensor.data_type for tensor in zero_points} >= {onnx.TensorProto.UINT16, onnx.TensorProto.UINT8}
    scales = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name.endswith("_scale")]
    assert max(scale.max() for scale in scales) < 0.01  # with the mask of -3.4e38 one would be 5e33


def test_padding_changes_nothing(store, tmp_path):
    source = tiny_encoder.write(tmp_path / "tiny")
    made(store, source)
    folder = store.resolve("tiny-npu").path
    fixed = Encoder(f"{folder}/model.onnx", source / "tokenizer.json", threads=1)
    free = Encoder(source / "model.onnx", source / "tokenizer.json", threads=1)
    first, second = fixed.vector("yes"), free.vector("yes")
    assert fixed.inputs("yes")["input_ids"].shape == (1, 128)
    assert first @ second / np.linalg.norm(first) / np.linalg.norm(second) > 0.99


def test_a_model_that_writes_text_is_refused_with_what_it_would_take(store, tmp_path):
    with pytest.raises(InvalidRequest, match=r"graphs of a fixed length.*--target cpu"):
        made(store, tiny_gguf.write(tmp_path / "tiny.gguf"))
