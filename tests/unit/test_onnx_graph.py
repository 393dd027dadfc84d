import onnx
import pytest
from fakes import tiny_onnx
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ModelRejected
from agent.onnx_graph import check_folder, read_graph


@pytest.fixture(scope="module")
def whole():
    return tiny_onnx.model()


def external(whole, folder, location, **more):
    """Write the graph with one tensor said to lie elsewhere."""
    changed = onnx.ModelProto()
    changed.CopyFrom(whole)
    tensor = next(t for t in changed.graph.initializer if t.name == "head")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=str(value))
    path = folder / "model.onnx"
    path.write_bytes(changed.SerializeToString())
    return path


def test_a_graph_tells_what_it_is(whole, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(whole.SerializeToString())
    graph = read_graph(path)
    assert graph.opsets == {"": 21, "com.microsoft": 1}
    assert graph.inputs[:2] == ("input_ids", "attention_mask")
    assert graph.outputs[0] == "logits"
    assert graph.operators["GroupQueryAttention"] == tiny_onnx.LAYERS
    assert graph.quantization == "float32"
    tables = sum(onnx.numpy_helper.to_array(t).size for t in whole.graph.initializer if t.name in {"cos", "sin"})
    floats = [onnx.numpy_helper.to_array(t).size for t in whole.graph.initializer if t.data_type == 1]
    assert graph.parameters == sum(floats) - tables


def test_quantized_weights_are_counted_as_what_they_stand_for(tmp_path):
    helper, kinds = onnx.helper, onnx.TensorProto
    packed = helper.make_tensor("packed", kinds.UINT8, [64, 2, 16], bytes(64 * 2 * 16), raw=True)
    scales = helper.make_tensor("scales", kinds.FLOAT, [128], bytes(512), raw=True)
    node = helper.make_node(
        "MatMulNBits", ["x", "packed", "scales"], ["y"], domain="com.microsoft", K=64, N=64, bits=4, block_size=32
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph([node], "g", [value("x", 1, [1, 64])], [value("y", 1, [1, 64])], [packed, scales])
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    assert read_graph(path).weights == {"int4": 64 * 64}


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "x\0y"])
def test_weights_outside_of_the_folder_are_refused(whole, tmp_path, location):
    with pytest.raises(ModelRejected, match="only files beside it"):
        read_graph(external(whole, tmp_path, location))


def test_weights_that_are_missing_cut_off_or_a_link_are_refused(whole, tmp_path):
    path = external(whole, tmp_path, "weights", offset=4096)
    with pytest.raises(ModelRejected, match="missing"):
        check_folder(path)
    data = tmp_path / "weights"
    needed = 4096 + tiny_onnx.WIDTH * tiny_onnx.VOCABULARY * 4
    data.write_bytes(bytes(needed - 1))
    with pytest.raises(ModelRejected, match=f"looks for {needed} bytes in weights, which has {needed - 1}"):
        check_folder(path)
    data.rename(tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelRejected, match="symbolic link"):
        check_folder(path)
    data.unlink()
    data.write_bytes(bytes(needed))
    assert check_folder(path).data_files == {"weights": needed}


def test_weights_inside_of_nodes_and_branches_are_looked_at_too(tmp_path):
    helper = onnx.helper
    hidden = helper.make_tensor("t", onnx.TensorProto.FLOAT, [1], [0.0])
    hidden.ClearField("float_data")
    hidden.data_location = onnx.TensorProto.EXTERNAL
    hidden.external_data.add(key="location", value="../t")
    value = helper.make_tensor_value_info
    constant = helper.make_node("Constant", [], ["y"], value=hidden)
    inner = helper.make_graph([constant], "inner", [], [value("y", 1, [1])])
    branch = helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    graph = helper.make_graph([branch], "outer", [value("c", 9, [1])], [value("z", 1, [1])])
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(ModelRejected, match="only files beside it"):
        read_graph(path)


def test_a_file_that_is_cut_anywhere_is_refused(whole, tmp_path):
    raw = whole.SerializeToString()
    path = tmp_path / "model.onnx"
    for size in [0, 1, 7, len(raw) // 2, len(raw) - 1]:
        path.write_bytes(raw[:size])
        with pytest.raises(ModelRejected, match=r"model\.onnx"):
            read_graph(path)


@given(st.binary(max_size=400))
def test_no_bytes_break_the_reader(tmp_path_factory, raw):
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(raw)
    with pytest.raises(ModelRejected):
        read_graph(path)
