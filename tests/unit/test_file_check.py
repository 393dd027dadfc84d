"""A file that would harm who loads it is refused before, whatever its digest."""

import onnx
import onnxruntime
import pytest
from fakes.gguf import gguf
from fakes.peft import safetensors

from agent.errors import ModelRejected
from agent.models.artifact import StoredModel
from agent.models.blobs import described
from agent.models.manifest import Manifest
from agent.models.onnx_check import NEWEST_IR, NEWEST_OPSET, check_onnx
from agent.models.store import ModelStore
from agent.types import ModelFormat

helper, kinds = onnx.helper, onnx.TensorProto


def graph_of(node=None, *, opset=NEWEST_OPSET, ir=NEWEST_IR, weights=(), functions=()):
    value = helper.make_tensor_value_info
    node = node or helper.make_node("Relu", ["x"], ["y"])
    graph = helper.make_graph([node], "g", [value("x", 1, [1])], [value("y", 1, [1])], list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], functions=list(functions))
    model.ir_version = ir
    return model


def elsewhere(location: str, **more) -> onnx.TensorProto:
    """Return a tensor whose data lies in another file."""
    tensor = onnx.TensorProto(name="w", data_type=kinds.FLOAT, dims=[4], data_location=kinds.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


@pytest.fixture
def keep(tmp_path):
    """Take a model of these files into a store."""
    store = ModelStore(tmp_path / "models", Manifest(()))

    def kept(kind: ModelFormat, files: dict[str, bytes]) -> ModelStore:
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        model = StoredModel(
            name="it",
            title="It",
            format=kind,
            files=tuple(described(tmp_path / name, name) for name in files),
            licence="MIT",
            source="file /x",
            context_tokens=256,
        )
        store.add(model, {name: tmp_path / name for name in files})
        return store

    return kept


def weights() -> bytes:
    import numpy as np

    return safetensors({"w": np.zeros((2, 2), np.float32)})


@pytest.mark.parametrize(
    ("kind", "files", "reason"),
    [
        (ModelFormat.GGUF, {"it.gguf": b"GGML" + gguf()[4:]}, "does not begin with GGUF"),
        (ModelFormat.CHECKPOINT, {"config.json": b"{", "model.safetensors": weights()}, "config.json is not JSON"),
        (
            ModelFormat.CHECKPOINT,
            {"config.json": b"{}", "model.safetensors": weights()[:-1]},
            "safetensors: tensors end",
        ),
        (ModelFormat.CHECKPOINT, {"tokenizer.json": b"[" * 100_000}, "tokenizer.json is not JSON"),
        (ModelFormat.ONNX_ENCODER, {"model.onnx": b"not a graph"}, "model.onnx is no ONNX file"),
        (ModelFormat.ONNX_ENCODER, {"model.onnx": graph_of(weights=[elsewhere("w")]).SerializeToString()}, "among"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_never_taken_in(kind, files, reason, keep, tmp_path):
    with pytest.raises(ModelRejected, match=reason):
        keep(kind, files)
    assert not list((tmp_path / "models" / "refs").iterdir())


@pytest.mark.parametrize("location", ["../w", "/etc/passwd", "a/w", "..", "", "w\0"])
def test_weights_elsewhere_are_refused_wherever_a_graph_names_them(location, tmp_path):
    """In its weights, in nodes, branches, functions, and sparse tensors: all that ONNX Runtime reads."""
    bad = elsewhere(location)
    constant = helper.make_node("Constant", [], ["y"], value=bad)
    branch = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("y", 1, [4])])
    sparse = onnx.SparseTensorProto(values=bad, dims=[4])
    makings = [
        graph_of(weights=[bad]),
        graph_of(constant),
        graph_of(helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)),
        graph_of(helper.make_node("Constant", [], ["y"], sparse_value=sparse)),
        graph_of(functions=[helper.make_function("own", "F", ["x"], ["y"], [constant], [helper.make_opsetid("", 20)])]),
    ]
    sparse_weights = graph_of()
    sparse_weights.graph.sparse_initializer.append(sparse)
    for model in [*makings, sparse_weights]:
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(ModelRejected, match="only files beside it may be named"):
            check_onnx(tmp_path / "model.onnx", {"w": 100})


def test_a_place_that_is_said_twice_is_refused(tmp_path):
    tensor = elsewhere("w")
    tensor.external_data.add(key="location", value="../w")
    (tmp_path / "model.onnx").write_bytes(graph_of(weights=[tensor]).SerializeToString())
    with pytest.raises(ModelRejected, match="says twice"):
        check_onnx(tmp_path / "model.onnx", {"w": 100})


def test_the_newest_opset_and_version_are_those_of_the_runtime(tmp_path):
    """Also when the pinned runtime changes: then these figures have to."""
    path = tmp_path / "model.onnx"
    for opset, ir, reason in (
        (NEWEST_OPSET, NEWEST_IR, None),
        (NEWEST_OPSET + 1, NEWEST_IR, f"of opset {NEWEST_OPSET + 1}, this runtime knows"),
        (NEWEST_OPSET, NEWEST_IR + 1, f"of version {NEWEST_IR + 1}, this runtime reads"),
    ):
        path.write_bytes(graph_of(opset=opset, ir=ir).SerializeToString())
        if reason is None:
            onnxruntime.InferenceSession(path)
            check_onnx(path, {})
            continue
        with pytest.raises(Exception, match="FAIL"):
            onnxruntime.InferenceSession(path)
        with pytest.raises(ModelRejected, match=reason):
            check_onnx(path, {})


def test_what_a_training_left_is_refused(tmp_path):
    model = graph_of()
    model.training_info.add()
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelRejected, match="export it for inference"):
        check_onnx(tmp_path / "model.onnx", {})


def test_a_graph_as_a_bomb_is_refused_by_its_counts(tmp_path):
    def part(number: int, data: bytes) -> bytes:
        size = b""
        left = len(data)
        while left > 127:
            size, left = size + bytes([left & 127 | 128]), left >> 7
        return bytes([number << 3 | 2]) + size + bytes([left]) + data

    path = tmp_path / "model.onnx"
    for bomb, reason in (
        (part(7, part(5, b"") * 70_000), "too many tensors"),
        (part(7, part(5, part(1, b"\1" * 1000))), "too many dimensions"),
        (part(7, part(1, b"") * 1_100_000), "too many parts"),
        (part(7, part(1, part(4, b"n" * 4000)) * 9_000), "names have too many bytes"),
    ):
        path.write_bytes(bomb)
        with pytest.raises(ModelRejected, match=reason):
            check_onnx(path, {})


def test_weights_are_not_read(tmp_path):
    """Two GiB of holes: only the pages that the structure is on are touched."""
    size = 2 << 30
    raw = helper.make_tensor("w", kinds.FLOAT, [1], b"1234", raw=True).SerializeToString()
    at = raw.index(b"1234")
    length, left = b"", size
    while left > 127:
        length, left = length + bytes([left & 127 | 128]), left >> 7
    tensor = raw[: at - 1] + length + bytes([left])
    path = tmp_path / "model.onnx"
    inner, outer = len(tensor) + size, b""
    for _ in range(2):
        outer, left = b"", inner
        while left > 127:
            outer, left = outer + bytes([left & 127 | 128]), left >> 7
        tensor = bytes([0x2A if _ == 0 else 0x3A]) + outer + bytes([left]) + tensor
        inner = len(tensor) + size
    opset = onnx.ModelProto(opset_import=[helper.make_opsetid("", 20)]).SerializeToString()
    with path.open("wb") as file:
        file.write(opset + tensor)
        file.truncate(len(opset) + len(tensor) + size)
    assert check_onnx(path, {}).weights == {"float32": 1}
    assert path.stat().st_blocks * 512 < 1 << 20
