"""The engine's kernels for Arm beside those of this machine, by an emulator. Left out where that is not set up."""

import os
import platform
import sys
from pathlib import Path

import llama_cpp.llama_cpp as native
import numpy as np
import pytest
from fakes.smollm2 import ARM, model_file

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))

import arm_check

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]
FAMILY = "armv8.2-a+dotprod+fp16"


@pytest.fixture(scope="module")
def folder():
    if platform.machine() not in {"x86_64", "AMD64"}:
        pytest.skip("this machine is no x86-64: there is nothing to compare with")
    found = Path(os.environ[ARM]) / arm_check.key()
    if not (found / FAMILY / "read_tokens").exists():
        pytest.skip("the engine is not built for aarch64; `python scripts/arm_check.py --build` does it")
    try:
        arm_check.emulator()
    except arm_check.CannotBuildError as error:
        pytest.skip(str(error))
    return found


def test_arm_computes_what_this_machine_does(folder, tmp_path):
    model = tmp_path / "q4_0.gguf"
    options = native.llama_model_quantize_default_params()
    options.ftype, options.allow_requantize = native.LLAMA_FTYPE_MOSTLY_Q4_0, True
    assert native.llama_model_quantize(model_file().path.encode(), str(model).encode(), options) == 0
    tokens, prompt, here = arm_check.written_here(model, "The lighthouse keeper", 4)
    found = arm_check.compared(here, arm_check.read_there(folder, FAMILY, model, tokens, prompt), prompt)
    assert found.agrees, str(found)


def test_kernels_that_are_wrong_do_not_agree():
    here = np.random.default_rng(1).normal(0, 3, (20, 500)).astype(np.float32)
    assert arm_check.compared(here, here + np.float32(0.01), 10).agrees  # a shift of all is no difference
    assert not arm_check.compared(here, np.roll(here, 1, -1), 10).agrees
    assert not arm_check.compared(here, np.zeros_like(here), 10).agrees


def conversation(tokens, scores):
    content = [{"token": token, "logprob": score} for token, score in tokens]
    labels = [{"label": label, "probability": score} for label, score in scores.items()]
    return {
        "machine": "aarch64",
        "chat": {
            "choices": [
                {"message": {"content": "".join(token for token, _ in tokens)}, "logprobs": {"content": content}}
            ]
        },
        "scores": {"label": max(scores, key=scores.get), "labels": labels},
    }


@pytest.mark.parametrize(
    ("tokens", "scores", "agrees"),
    [
        ([("It", -0.2), (" is", -0.1), (" Paris", -0.1), (".", -0.1)], {"a": 0.55, "b": 0.45}, True),
        ([("It", -0.2), (" was", -0.1), (" Paris", -0.1), (".", -0.1)], {"a": 0.6, "b": 0.4}, False),
        ([("It", -2.2), (" is", -0.1), (" Paris", -0.1), (".", -0.1)], {"a": 0.6, "b": 0.4}, False),
        ([("It", -0.2), (" is", -0.1), (" Paris", -0.1), (".", -0.1)], {"a": 0.4, "b": 0.6}, False),
        ([("It", -0.2), (" is", -0.1), (" Paris", -0.1), (".", -0.1)], {"a": 0.9, "b": 0.1}, False),
    ],
)
def test_a_conversation_agrees_by_its_first_tokens_and_its_scores(tokens, scores, agrees):
    ours = conversation([("It", -0.1), (" is", -0.1), (" Paris", -0.1), (".", -0.1)], {"a": 0.6, "b": 0.4})
    assert arm_check.conversation_compared(ours, conversation(tokens, scores)).agrees is agrees
