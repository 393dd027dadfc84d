"""The Hugging Face checkpoint of a model that writes text to ONNX with 4- or 8-bit weights, by onnxruntime-genai.

The result is compared with torch where it was made, on a text that ships with the product. The
tokenizer is that of the checkpoint, byte for byte: the builder's transformers would write another.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import msgspec

from agent.models.build_env import ENVIRONMENTS, BuildEnvironment
from agent.models.recipes.environment_program import run_program
from agent.models.recipes.generation_files import (
    COMPARE,
    MARK,
    TOKENIZER,
    finish,
    judged,
    read_object,
    require_tokenizer,
)
from agent.models.recipes.importance import TEXT
from agent.models.recipes.job import Job, Made, Progress, Tell
from agent.types import ModelFormat

_WEIGHTS = re.compile(r".*\.safetensors(\.index\.json)?|tokenizer\.model")
_LAYER = re.compile(rb"Reading layer (\d+)")
_BUILD = """
import runpy
source, folder, cache, precision, text, *options = sys.argv[1:]
sys.argv = ["builder", "-i", source, "-o", folder, "-p", precision, "-e", "cpu", "-c", cache, "--extra_options", *options]
runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
"""
_BUILT = "source, folder, cache, precision, text, *options = sys.argv[1:]\n"


class _Precision(msgspec.Struct, frozen=True):
    """How the weights are written."""

    name: str  # the builder's word
    options: tuple[str, ...]
    least: float  # share of positions with the same likeliest token as in torch


_PRECISIONS = {
    "generation-int4": _Precision("int4", ("algo_config=default", "accuracy_level=4", "block_size=32"), 0.5),
    "generation-int8": _Precision("int8", (), 0.9),
}


def make(job: Job, tell: Tell) -> Made:
    """Write ``model.onnx``, its weights, ``genai_config.json`` and the tokenizer. Raises WrongState, ModelRejected.

    A build that was finished before is not made again, only compared; one that was stopped begins anew.
    """
    precision = _PRECISIONS[job.recipe]
    source, folder = Path(job.source), Path(job.folder)
    require_tokenizer(source)
    layers = int(read_object(source / "config.json").get("num_hidden_layers", 0)) + 2
    found: list[bytes] = []

    def follow(line: bytes) -> None:
        if layer := _LAYER.search(line):
            tell(Progress(step="building", done=int(layer[1]) + 1, total=layers))
        elif line.startswith(b"COMPARING"):
            whole.touch()
            tell(Progress(step="comparing with torch", done=layers - 1, total=layers))
        elif line.startswith(MARK):
            found.append(line)

    built, staged, whole = folder / "built", folder / "staged", folder / "built.whole"
    is_built = whole.exists()
    if not is_built:
        shutil.rmtree(built, ignore_errors=True)
    _stage(source, staged)
    tell(Progress(step="starting torch", done=0, total=layers))
    run_program(
        BuildEnvironment(Path(job.environment), "generation"),
        (_BUILT if is_built else _BUILD) + COMPARE,
        [
            str(staged),
            str(built),
            str(folder / "cache"),
            precision.name,
            str(TEXT),
            "hf_token=false",
            *precision.options,
        ],
        follow,
        what=f"the builder of onnxruntime-genai does not take {source}",
    )
    remark = judged(job, found[-1] if found else b"", precision.least)
    whole.unlink(missing_ok=True)  # its files leave now
    names, context = finish(job, built)
    pins = dict(pin.split("==") for pin in ENVIRONMENTS["generation"].pins if "==" in pin)
    return Made(
        files=names,
        format=ModelFormat.ONNX_GENERATION,
        versions={name: pins[name] for name in ("onnxruntime-genai", "transformers", "torch")},
        remark=remark,
        context_tokens=context,
    )


def _stage(source: Path, staged: Path) -> None:
    """Lay out the checkpoint for the builder: its tokenizer is taken as ``tokenizer.json`` says, not as a class does."""
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    for path in source.iterdir():
        if _WEIGHTS.fullmatch(path.name):
            try:
                (staged / path.name).symlink_to(path.resolve())
            except OSError:  # a file system, or a Windows, without links
                shutil.copyfile(path, staged / path.name)
        elif path.name in TOKENIZER:
            shutil.copyfile(path, staged / path.name)
    settings = staged / "tokenizer_config.json"
    given = read_object(settings) if settings.exists() else {}
    kept = {key: value for key, value in given.items() if value is not None}  # that transformers chokes on null
    settings.write_text(json.dumps(kept | {"tokenizer_class": "PreTrainedTokenizerFast"}), encoding="utf-8")
