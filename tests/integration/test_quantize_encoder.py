"""ONNX encoders to 8 bits in a real child with the real onnxruntime, on a model with random weights."""

import json

import onnx
import pytest
from click.testing import CliRunner
from fakes import tiny_encoder

from agent.cli.main import cli
from agent.errors import InvalidRequest, ModelRejected, WrongState
from agent.models.artifact import StoredModel
from agent.models.blobs import described
from agent.models.converting import quantize_any
from agent.models.quantizing import Wish
from agent.models.recipes import golden
from agent.models.recipes.golden import Encoder
from agent.models.store import open_store
from agent.types import ModelFormat


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "data")


@pytest.fixture
def source(tmp_path):
    return tiny_encoder.write(tmp_path / "Tiny Encoder FP32")


def made(store, source, follow=lambda _: None, **more):
    return quantize_any(store, store.blobs.root.parent, Wish(source=str(source), **more), follow)


def leftovers(store):
    making = store.blobs.root / "making"
    return [path for path in making.rglob("*") if path.is_file() and path.suffix != ".lock"] if making.exists() else []


def test_an_encoder_is_made_compared_and_taken_into_the_store_with_its_record(store, source):
    steps = []
    outcome = made(store, source, lambda progress: steps.append(progress.step))
    model = store.get("tiny-encoder-int8")
    assert model == outcome.model
    assert model.format is ModelFormat.ONNX_ENCODER
    assert [file.name for file in model.files] == ["model.onnx", "config.json", "tokenizer.json"]
    assert (model.context_tokens, model.tasks) == (128, ("embed",))
    assert model.making.recipe == "onnx-int8"
    assert {"outrider", "onnxruntime", "onnx"} <= model.making.versions.keys()
    assert "cosine to the source 0.99" in model.remark
    assert list(dict.fromkeys(steps)) == ["reading", "rounding to 8 bits", "comparing with the source"]
    folder = store.resolve("tiny-encoder-int8").path
    kinds = {node.op_type for node in onnx.load(f"{folder}/model.onnx").graph.node}
    assert {"MatMulInteger", "DynamicQuantizeLinear"} <= kinds
    assert outcome.model.bytes < outcome.source_bytes
    assert not leftovers(store)
    assert made(store, source).was_there


def test_the_weights_leave_a_bit_free_so_that_no_processor_saturates(store, source):
    made(store, source)
    graph = onnx.load(f"{store.resolve('tiny-encoder-int8').path}/model.onnx").graph
    matrices = [
        onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name.endswith("_quantized")
    ]
    assert matrices
    assert all(abs(matrix.astype(int)).max() <= 64 for matrix in matrices if matrix.dtype == "int8")
    scales = [tensor for tensor in graph.initializer if tensor.name == "up_scale"]
    assert scales[0].dims == [tiny_encoder.HIDDEN]  # one for each column


def test_a_model_of_the_store_hands_on_what_is_known_of_it(store, source):
    files = {name: source / name for name in ("model.onnx", "tokenizer.json", "config.json")}
    parent = StoredModel(
        name="sorter-f32",
        title="Sorter, FP32",
        format=ModelFormat.ONNX_ENCODER,
        files=tuple(described(path, name) for name, path in files.items()),
        licence="MIT",
        source="file",
        context_tokens=64,
        tasks=("classify",),
    )
    store.add(parent, files)
    model = made(store, "sorter-f32").model
    assert (model.name, model.title, model.licence) == ("sorter-int8", "Sorter, int8", "MIT")
    assert (model.tasks, model.context_tokens) == (("classify",), 64)
    assert model.making.parent_digest == parent.digest
    with pytest.raises(ModelRejected, match="quantized already"):
        made(store, "sorter-int8", name="again")


def test_a_model_that_rounding_destroys_is_refused_and_nothing_is_kept(store, tmp_path):
    source = tiny_encoder.write(tmp_path / "spiky", outlier=1e5)
    with pytest.raises(ModelRejected, match=r"does not say what its source says: cosine .* the floor is 0.98"):
        made(store, source)
    assert store.get("spiky-int8") is None
    forced = made(store, source, force=True).model
    assert "below the floor" in forced.remark


def test_it_goes_on_where_it_was_stopped(store, source):
    def stop(progress):
        if progress.step == "comparing with the source":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(store, source, stop)
    assert store.get("tiny-encoder-int8") is None
    assert "model.onnx" in {path.name for path in leftovers(store)}
    steps = []
    made(store, source, lambda progress: steps.append(progress.step))
    assert "rounding to 8 bits" not in steps
    assert not leftovers(store)


def test_bad_sources(store, source, tmp_path):
    with pytest.raises(InvalidRequest, match="no recipe 'gguf-q4_k_m' for the ONNX encoder"):
        made(store, source, recipe="gguf-q4_k_m")
    (source / "tokenizer.json").unlink()
    with pytest.raises(ModelRejected, match="no tokenizer"):
        made(store, source)
    graph = (source / "model.onnx").read_bytes()
    (source / "model.onnx").write_bytes(graph[: len(graph) // 2])
    with pytest.raises(ModelRejected, match="not a whole ONNX model"):
        made(store, source, name="cut")
    far = onnx.load_from_string(graph)
    onnx.save(far, source / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    outside = (source / "model.onnx").read_bytes().replace(b"weights.bin", b"../eights.bi")
    (source / "weights.bin").rename(tmp_path / "eights.bi")
    (source / "model.onnx").write_bytes(outside)
    with pytest.raises(ModelRejected, match="not a whole ONNX model"):
        made(store, source, name="far")
    assert not list(store.blobs.root.glob("refs/*"))


def test_the_command_line(tmp_path, source):
    arguments = ["--data-dir", str(tmp_path / "data"), "quantize", str(source), "--name", "mine", "--json"]
    result = CliRunner().invoke(cli, arguments, prog_name="outrider")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["model"]["name"] == "mine"
    refused = CliRunner().invoke(cli, [*arguments, "--recipe", "onnx-int3"], prog_name="outrider")
    assert refused.exit_code == 2
    listed = CliRunner().invoke(cli, ["quantize", "--recipe", "list"], prog_name="outrider")
    assert "onnx-int8" in json.loads(listed.stdout)
    with pytest.raises(WrongState, match="--name"):
        made(open_store(tmp_path / "data"), tiny_encoder.write(tmp_path / "other", seed=1), name="mine")


def test_an_encoder_agrees_with_itself(source):
    encoder = Encoder(source / "model.onnx", source / "tokenizer.json", threads=1)
    same = golden.compare(encoder, encoder, lambda _: None)
    assert same.least == pytest.approx(1)
    assert same.good
