"""Weights that are held in memory in a faster form than the file's."""

import asyncio
import os
import shutil
import time

import llama_cpp.llama_cpp as native
import msgspec
import numpy as np
import pytest
from fakes import smollm2

from agent.compute import WeightLayout
from agent.engine import frames, relaid_weights
from agent.engine.llama_cpp_runtime import LlamaCppRuntime
from agent.engine.runtime import Chunk
from agent.engine.supervisor import EnginePool
from agent.llama_library import load_backends
from agent.settings import EngineSettings
from agent.types import Generation, InferenceRequest, Message, ModelFormat, Sampling

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="weights are held in another form on x86 only"),
]
PROMPT = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47]


def order(path=None, **changes):
    file = smollm2.model_file(**({"path": str(path)} if path else {}))
    load = frames.Load(model=file, context_tokens=256, parallel=1, waiting_line=0, threads=1, confine=False)
    return msgspec.structs.replace(load, **changes)


def relaid(load):
    return relaid_weights.relaid(load, relaid_weights.make_room(load))


def quantized(path, kind):
    load_backends()
    wish = native.llama_model_quantize_default_params()
    wish.nthread, wish.ftype, wish.allow_requantize = 2, kind, True
    assert native.llama_model_quantize(smollm2.model_file().path.encode(), str(path).encode(), wish) == 0
    return path


def rows(load):
    runtime = LlamaCppRuntime(load)
    try:
        (row,) = runtime.decode([Chunk(0, 0, PROMPT, wants_row=True)])
        return row.copy(), runtime.traits, runtime.state_format
    finally:
        runtime.close()


def test_the_weights_in_memory_are_those_of_a_file_requantized_by_llama_cpp(tmp_path):
    load = order()
    assert relaid(load).model.path != load.model.path
    row, traits, kept = rows(relaid(load))
    same, of_file, _ = rows(order(quantized(tmp_path / "q8_0.gguf", native.LLAMA_FTYPE_MOSTLY_Q8_0)))
    assert np.array_equal(row, same)
    assert (traits.quantization, traits.held_as) == ("Q4_1", "Q8_0")
    assert (of_file.quantization, of_file.held_as) == ("Q8_0", "")
    stored, _, kept_stored = rows(load)
    assert not np.array_equal(row, stored)
    assert "weights as Q8_0" in kept
    assert "weights" not in kept_stored  # what one of them saved of a prompt, the other does not take


def test_weights_stay_as_they_are_stored_where_that_is_wished_or_no_gain(tmp_path):
    fast = quantized(tmp_path / "q8_0.gguf", native.LLAMA_FTYPE_MOSTLY_Q8_0)
    short = tmp_path / "short.gguf"
    shutil.copy(smollm2.model_file().path, short)
    os.truncate(short, 50_000_000)
    encoder = msgspec.structs.replace(order().model, format=ModelFormat.ONNX_GENERATION)
    for load in (
        order(weights=WeightLayout.STORED),
        order(model=encoder),
        order(fast),
        order(short),
        order(tmp_path / "missing.gguf"),
        order(__file__),
        order(memory_bytes=400 << 20),  # a quarter of it is less than the weights
    ):
        assert relaid(load) is load


def test_a_confined_worker_makes_them():
    async def served():
        settings = EngineSettings(context_tokens=256, parallel=1, threads=1)
        pool = EnginePool(settings, lambda _: smollm2.model_file())
        request = InferenceRequest(
            id="r",
            model="smollm2",
            messages=(Message("user", "What is the capital of France?"),),
            sampling=Sampling(),
            received_at_ms=time.time_ns() // 1_000_000,
        )
        try:
            *_, last = [event async for event in pool.generate(request)]
            return last, pool.status()["smollm2"]
        finally:
            await pool.stop(0)

    answer, status = asyncio.run(served())
    assert isinstance(answer, Generation)
    assert answer.text == "The capital of France is Paris."
    assert "seccomp" in status.confinement
    assert (status.traits.quantization, status.traits.held_as) == ("Q4_1", "Q8_0")
