"""A PEFT adapter, converted, does to the real weights what merging it into them does."""

import ctypes
import struct
from pathlib import Path

import llama_cpp.llama_cpp as native
import numpy as np
import pytest
from fakes import peft, smollm2

from agent.engine import frames
from agent.engine.llama_cpp_runtime import LlamaCppRuntime
from agent.engine.runtime import Chunk, ModelUnloadable, Node
from agent.engine.supervisor import EnginePool
from agent.llama_library import load_backends
from agent.models.adapters import AdapterCatalog
from agent.models.gguf_check import check_gguf
from agent.models.peft_conversion import convert
from agent.settings import AdapterSettings, EngineSettings
from agent.types import AdapterFile, InferenceRequest, Message, Sampling

pytestmark = pytest.mark.model
TOKENS = [1, 504, 3575, 282, 4649, 314, 253, 1379]
SCALE = 0.5


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The weights as float32."""
    path = tmp_path_factory.mktemp("f32") / "base.gguf"
    load_backends()
    parameters = native.llama_model_quantize_default_params()
    parameters.ftype = native.LLAMA_FTYPE_ALL_F32
    parameters.allow_requantize = True
    source = smollm2.model_file().path.encode()
    assert native.llama_model_quantize(source, str(path).encode(), ctypes.byref(parameters)) == 0
    return path


def logits(path, adapter=None):
    """Return what comes after TOKENS, by the batches of answers and by those of label scores."""
    load = frames.Load(
        model=smollm2.model_file(path=str(path), adapter=adapter),
        context_tokens=256,
        parallel=1,
        waiting_line=0,
        threads=1,
        confine=False,
    )
    runtime = LlamaCppRuntime(load)
    try:
        row = runtime.decode([Chunk(0, 0, TOKENS, wants_row=True)])[0].copy()
        nodes = [Node(token, at, None, at == len(TOKENS) - 1) for at, token in enumerate(TOKENS)]
        return row, runtime.scoring(64).decode(nodes)[0].copy()
    finally:
        runtime.close()


def merge(path, matrices, factor):
    """Add factor * B @ A to the weights, row by row where each row went in the conversion of the model."""
    header = check_gguf(path)
    data = np.memmap(path, np.uint8, "r+")
    at = offsets(path, header)
    for (layer, part), (a, b) in matrices.items():
        kind = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "down_proj": "ffn_down"}[part]
        name = f"blk.{layer}.{kind}.weight"
        columns, rows = header.shapes[name]
        weight = data[at[name] : at[name] + rows * columns * 4].view(np.float32).reshape(rows, columns)
        delta = factor * (b.astype(np.float64) @ a.astype(np.float64))
        if part in {"q_proj", "k_proj"}:
            heads = {"q_proj": 9, "k_proj": 3}[part]
            width = rows // heads
            moved = np.empty_like(delta)
            for row in range(rows):
                head, inside = divmod(row, width)
                half, pair = divmod(inside, width // 2)
                moved[head * width + 2 * pair + half] = delta[row]
            delta = moved
        weight += delta.astype(np.float32)
    data.flush()


def offsets(path, header):
    raw = path.read_bytes()
    found = {}
    for name, shape in header.shapes.items():
        entry = struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(shape))
        at = raw.index(entry) + len(entry) + 8 * len(shape) + 4
        found[name] = struct.unpack_from("<Q", raw, at)[0]
        end = at + 8
    start = -(-end // 32) * 32
    return {name: start + offset for name, offset in found.items()}


def test_an_adapter_does_what_the_merged_weights_do(plain, tmp_path):
    matrices = peft.matrices(layers=(0, 7, 29), parts=("q_proj", "k_proj", "v_proj", "down_proj"))
    adapter = tmp_path / "adapter.gguf"
    assert convert(peft.write(tmp_path / "peft", matrices), plain, adapter).tensors == 2 * len(matrices)
    found, scored = logits(plain, AdapterFile(path=str(adapter), sha256="", scale=SCALE))
    without, _ = logits(plain)
    merge(plain, matrices, SCALE * peft.ALPHA / peft.RANK)
    wanted, _ = logits(plain)
    assert np.abs(wanted - without).max() > 1, "the adapter must matter"
    assert np.abs(found - wanted).max() < 1e-2
    assert np.abs(scored - wanted).max() < 5e-2, "labels are scored through the adapter, too"


def test_an_adapter_that_llama_cpp_refuses_is_an_error(tmp_path):
    (tmp_path / "none.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelUnloadable, match="adapter"):
        logits(smollm2.model_file().path, AdapterFile(path=str(tmp_path / "none.gguf"), sha256="", scale=1.0))


async def test_two_scales_of_one_adapter_are_two_models_beside_their_base(tmp_path):
    base = smollm2.model_file()
    path = tmp_path / "adapter.gguf"
    convert(peft.write(tmp_path / "peft", peft.matrices(layers=range(3))), Path(base.path), path)
    names = {"weak": 0.01, "strong": 1.0}
    catalog = AdapterCatalog(
        [AdapterSettings(name=name, model="smollm2", path=str(path), scale=scale) for name, scale in names.items()],
        {"smollm2": base}.__getitem__,
        tuple,
    )
    pool = EnginePool(EngineSettings(context_tokens=256, parallel=1, threads=1), catalog.resolve)
    try:
        answers = {name: await ask(pool, name) for name in ("smollm2", *names, "smollm2")}
    finally:
        await pool.stop(0)
    assert len({answer.model_digest for answer in answers.values()}) == 3
    assert answers["smollm2"].model_digest == base.sha256
    logprobs = {name: answer.tokens[0].logprob for name, answer in answers.items()}
    assert len(set(logprobs.values())) == 3


async def ask(pool, model):
    request = InferenceRequest(
        id="r", model=model, messages=(Message("user", "Hi"),), sampling=Sampling(max_tokens=1), received_at_ms=0
    )
    *_, last = [event async for event in pool.generate(request)]
    assert last.failure is None
    return last
