"""Every runtime that the conformance suite is run on, small: three slots of 256 tokens."""

import pytest
from fakes import smollm2
from fakes.fake_runtime import FakeRuntime

from agent.engine import frames

CONTEXT = 256
SLOTS = 3


def llama_cpp():
    from agent.engine.llama_cpp_runtime import LlamaCppRuntime

    order = frames.Load(
        model=smollm2.model_file(), context_tokens=CONTEXT, parallel=SLOTS, waiting_line=0, threads=1, confine=False
    )
    return LlamaCppRuntime(order)


LOADERS = {
    "fake": lambda: FakeRuntime(slots=SLOTS, context_tokens=CONTEXT, batch_tokens=64, saved_tokens=CONTEXT),
    "llama.cpp": llama_cpp,
}
EACH = [pytest.param(name, marks=[] if name == "fake" else [pytest.mark.model]) for name in LOADERS]
