"""Every runtime that the conformance suite is run on, small: three slots of 256 tokens."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest
from fakes import smollm2, tiny_onnx
from fakes.fake_runtime import FakeRuntime

from agent.engine import frames
from agent.types import ModelFile, ModelFormat

CONTEXT = 256
SLOTS = 3


def llama_cpp():
    from agent.engine.llama_cpp_runtime import LlamaCppRuntime

    order = frames.Load(
        model=smollm2.model_file(), context_tokens=CONTEXT, parallel=SLOTS, waiting_line=0, threads=1, confine=False
    )
    return LlamaCppRuntime(order)


def onnxruntime():
    from agent.engine.onnx_generation_runtime import OnnxGenerationRuntime

    return OnnxGenerationRuntime(onnx_order(tiny_folder()))


def exported():
    from agent.engine.onnx_generation_runtime import OnnxGenerationRuntime

    return OnnxGenerationRuntime(onnx_order(tiny_folder(positions=True, grows=True)))


def on_real_weights(kind):
    def loaded():
        from agent.engine.onnx_generation_runtime import OnnxGenerationRuntime

        return OnnxGenerationRuntime(onnx_order(smollm2.onnx_folder(kind), template=smollm2.TEMPLATE))

    return loaded


def onnx_order(folder, *, template=None, **changes):
    file = ModelFile(
        name="onnx",
        path=str(folder),
        format=ModelFormat.ONNX_GENERATION,
        sha256="0" * 64,
        context_tokens=4096,
        chat_template=template,
    )
    given = {
        "model": file,
        "context_tokens": CONTEXT,
        "parallel": SLOTS,
        "waiting_line": 0,
        "threads": 1,
        "confine": False,
    }
    return frames.Load(**(given | changes))


@cache
def tiny_folder(**changes):
    folder = Path(tempfile.mkdtemp(prefix="tiny-onnx-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return tiny_onnx.write(folder, data_file="model.onnx.data", **changes)


LOADERS = {
    "fake": lambda: FakeRuntime(slots=SLOTS, context_tokens=CONTEXT, batch_tokens=64, saved_tokens=CONTEXT),
    "llama.cpp": llama_cpp,
    "onnxruntime": onnxruntime,
    "onnxruntime, as optimum exports": exported,
    "onnxruntime, int4": on_real_weights("int4"),
    "onnxruntime, int8": on_real_weights("int8"),
}
MADE_UP = {"fake", "onnxruntime", "onnxruntime, as optimum exports"}  # not on weights that are trained
EACH = [pytest.param(name, marks=[] if name in MADE_UP else [pytest.mark.model]) for name in LOADERS]
