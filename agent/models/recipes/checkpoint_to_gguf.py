"""Hugging Face checkpoint to GGUF, with the converter of the llama.cpp that answers here. Loses nothing."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

from agent.errors import ModelRejected
from agent.models.build_env import BuildEnvironment
from agent.models.gguf_check import GgufHeader, check_gguf
from agent.models.recipes.environment_program import RUN_FILE, run_program
from agent.models.recipes.job import Job, Made, Progress, Tell
from agent.types import ModelFormat

_PERCENT = re.compile(rb"Writing: +(\d+)%")


def make(job: Job, tell: Tell) -> Made:
    """Write ``<output>.gguf`` in the type that the output's name ends with. Raises ModelRejected."""
    environment = BuildEnvironment(Path(job.environment))
    made = Path(job.folder) / f"{job.output}.gguf"
    partial = made.with_name(f".partial-{made.name}")
    kind = job.output.rpartition("-")[2]

    def follow(line: bytes) -> None:
        if found := _PERCENT.findall(line):
            tell(Progress(step="converting", done=int(found[-1]), total=100))

    tell(Progress(step="converting", done=0, total=100))
    run_program(
        environment,
        RUN_FILE,
        [str(environment.converter), job.source, "--outfile", str(partial), "--outtype", kind],
        follow,
        what=f"the converter of llama.cpp does not take {job.source}",
    )
    _require_tokenizer(Path(job.source), check_gguf(partial))
    partial.replace(made)
    return Made(
        files=(made.name,),
        format=ModelFormat.GGUF,
        versions={"converter": f"llama.cpp of llama-cpp-python {version('llama-cpp-python')}"},
    )


def _require_tokenizer(folder: Path, header: GgufHeader) -> None:
    """Refuse a result whose tokenizer is of another kind: the converter falls back on one without a word."""
    tokenizer = folder / "tokenizer.json"
    splits = tokenizer.is_file() and '"ByteLevel"' in tokenizer.read_text(encoding="utf-8")
    kind = header.scalars.get("tokenizer.ggml.model")
    if splits and not (folder / "tokenizer.model").is_file() and kind != "gpt2":
        raise ModelRejected(
            f"{tokenizer} works on bytes, and the converter of llama.cpp made a tokenizer of the kind {kind!r} of it: "
            "it would read text otherwise. See byte_fallback and pre_tokenizer there"
        )
