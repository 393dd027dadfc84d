"""What needs torch, in the real build environments; weights are random but for MiniLM's.

Left out unless OUTRIDER_BUILD_ENVS names a data directory that has them:
``outrider --data-dir DIR quantize --setup [--environment generation|npu]``.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from fakes import tiny_checkpoints, tiny_encoder
from fakes.runtimes import onnx_order

from agent.engine.onnx_generation_runtime import OnnxGenerationRuntime
from agent.engine.runtime import Node
from agent.errors import InvalidRequest
from agent.models.build_env import FOLDER, BuildEnvironment
from agent.models.converting import quantize_any
from agent.models.quantizing import Wish
from agent.models.recipes.importance import TEXT
from agent.models.store import open_store
from agent.types import ModelFormat

PLACE = os.environ.get("OUTRIDER_BUILD_ENVS", "")


@pytest.fixture
def store(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / FOLDER).symlink_to(Path(PLACE, FOLDER))
    return open_store(data)


def needs(name):
    there = PLACE and BuildEnvironment(Path(PLACE), name).made
    return pytest.mark.skipif(not there, reason=f"OUTRIDER_BUILD_ENVS names no data directory with {name}")


def checkpoint(tmp_path, kind):
    folder = tmp_path / f"tiny-{kind}"
    python = str(BuildEnvironment(Path(PLACE)).python)
    command = [python, tiny_checkpoints.__file__, kind, str(folder), str(TEXT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder, np.load(f"{folder}.npz")


def made(store, source, **more):
    return quantize_any(store, store.blobs.root.parent, Wish(source=str(source), **more), lambda _: None).model


@needs("checkpoints")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("kind", "tolerance", "context"),
    [
        ("gemma3", 5e-3, 512),  # llama.cpp computes Gelu out of a table of 16-bit numbers
        ("phi3", 1e-4, 256),
    ],
)
def test_llama_cpp_gives_the_logits_of_the_checkpoint(store, tmp_path, kind, tolerance, context):
    folder, torch = checkpoint(tmp_path, kind)
    model = made(store, folder, recipe="gguf-f16", force=True)
    whole = store.get(f"tiny-{kind}-f32")
    assert whole.context_tokens == context
    assert model.making.parent_digest == whole.digest
    logits = llama_logits(store.resolve(whole.name).path, torch["ids"].tolist())
    assert logits.shape == torch["logits"].shape
    assert np.abs(logits - torch["logits"]).max() < tolerance


def llama_logits(path, ids):
    """Return the logits at each position: float32 (tokens, vocabulary), with keys and values in F32."""
    import llama_cpp.llama_cpp as native

    from agent.llama_library import load_backends

    load_backends()
    model = native.llama_model_load_from_file(path.encode(), native.llama_model_default_params())
    options = native.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = 512
    options.type_k = options.type_v = options.flash_attn_type = 0
    options.n_threads = options.n_threads_batch = 1
    context = native.llama_init_from_model(model, options)
    batch = native.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for at, token in enumerate(ids):
        batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.logits[at] = token, at, 1, 1
        batch.seq_id[at][0] = 0
    assert native.llama_decode(context, batch) == 0
    width = native.llama_vocab_n_tokens(native.llama_model_get_vocab(model))
    rows = [np.ctypeslib.as_array(native.llama_get_logits_ith(context, at), (width,)).copy() for at in range(len(ids))]
    native.llama_batch_free(batch)
    native.llama_free(context)
    native.llama_model_free(model)
    return np.stack(rows)


@needs("generation")
@needs("checkpoints")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("recipe", ["onnx-int8", "onnx-int8-optimum"])
def test_both_ways_to_onnx_make_a_model_that_onnxruntime_genai_runs(store, tmp_path, recipe):
    folder, torch = checkpoint(tmp_path, "llama")
    model = made(store, folder, recipe=recipe, target="phone")
    assert model.format is ModelFormat.ONNX_GENERATION
    assert (model.context_tokens, model.making.inputs["threads"]) == (512, "4")
    place = store.resolve(model.name).path
    assert Path(place, "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert next_token(place, torch["ids"].tolist()) == torch["logits"][-1].argmax()
    assert not list((store.blobs.root / "making").glob("*/*"))


@needs("checkpoints")
@pytest.mark.timeout(300)
def test_what_the_builder_does_not_take_goes_by_optimum(store, tmp_path):
    folder, torch = checkpoint(tmp_path, "gpt_neox")
    with pytest.raises(InvalidRequest, match="there is no recipe 'gguf-q4_0'"):
        made(store, folder, recipe="gguf-q4_0")
    model = made(store, folder)
    assert (model.making.recipe, model.format) == ("onnx-int8-optimum", ModelFormat.ONNX_GENERATION)
    assert "as torch at" in model.remark
    runtime = OnnxGenerationRuntime(onnx_order(store.resolve(model.name).path, template="{{ messages[0].content }}"))
    ids = torch["ids"].tolist()
    context = runtime.scoring(len(ids))
    nodes = [Node(token, at, None, wants_row=at == len(ids) - 1) for at, token in enumerate(ids)]
    for begin in range(0, len(nodes), context.batch_tokens):
        rows = context.decode(nodes[begin : begin + context.batch_tokens])
    assert int(np.asarray(rows[-1]).argmax()) == torch["logits"][-1].argmax()


def next_token(place, ids):
    import onnxruntime_genai as og

    model = og.Model(place)
    options = og.GeneratorParams(model)
    options.set_search_options(max_length=len(ids) + 4, do_sample=False)
    generator = og.Generator(model, options)
    generator.append_tokens(np.array(ids, np.int32))
    generator.generate_next_token()
    return generator.get_next_tokens()[0]


@needs("checkpoints")
@pytest.mark.model
@pytest.mark.timeout(300)
def test_minilm_from_its_checkpoint_to_8_bits(store):
    small = made(store, "minilm-l6-v2")
    whole = store.get("minilm-l6-v2-f32")
    assert small.making.parent_digest == whole.digest
    assert float(whole.remark.rpartition("torch ")[2].split()[0]) < 1e-4
    assert float(small.remark.partition("source ")[2].split()[0]) >= 0.98
    assert small.bytes < whole.bytes / 3


@needs("npu")
@pytest.mark.timeout(300)
def test_a_graph_is_compiled_for_the_htp_as_one_piece(store, tmp_path):
    model = made(store, tiny_encoder.write(tmp_path / "tiny"), target="npu")
    assert model.making.inputs["htp_arch"] == "73"
    assert "unverified on hardware" in model.remark
    compiled = onnx.load(f"{store.resolve(model.name).path}/model.qnn.onnx")
    assert [node.op_type for node in compiled.graph.node].count("EPContext") == 1
