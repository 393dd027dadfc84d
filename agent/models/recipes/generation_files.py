"""The files of an ONNX model that writes text, and whether it still says what its checkpoint does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from agent.errors import ModelRejected
from agent.models.profiles import PROFILES
from agent.models.recipes.job import Job

SETTINGS = "genai_config.json"
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "generation_config.json", "config.json",
)  # fmt: skip
MARK = b"AGREEMENT"
# For a program of a build environment; ``source``, ``folder`` and ``text`` are set before.
COMPARE = """
print("COMPARING", flush=True)
import json
import numpy, onnxruntime, torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM
ids = Tokenizer.from_file(source + "/tokenizer.json").encode(open(text, encoding="utf-8").read()).ids[:256]
model = AutoModelForCausalLM.from_pretrained(source, local_files_only=True, dtype="auto").eval()
with torch.no_grad():
    wanted = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1).numpy()
del model
session = onnxruntime.InferenceSession(folder + "/model.onnx", providers=["CPUExecutionProvider"])
width = json.load(open(folder + "/genai_config.json"))["model"]["decoder"]["head_size"]
kinds = {"tensor(float)": numpy.float32, "tensor(float16)": numpy.float16, "tensor(int64)": numpy.int64}
whole = {"input_ids": [ids], "attention_mask": [[1] * len(ids)], "position_ids": [list(range(len(ids)))]}
feeds = {}
for value in session.get_inputs():
    if value.name in whole:
        feeds[value.name] = numpy.array(whole[value.name], kinds[value.type])
    else:  # keys and values of the past: none
        feeds[value.name] = numpy.zeros((1, value.shape[1], 0, width), kinds[value.type])
logits = torch.tensor(session.run(["logits"], feeds)[0][0][:, : wanted.shape[1]])
got = torch.log_softmax(logits.double(), -1).numpy()
same = float((got.argmax(-1) == wanted.argmax(-1)).mean())
print("AGREEMENT", same, float((numpy.exp(wanted) * (wanted - got)).sum(-1).mean()), len(ids), flush=True)
"""


def judged(job: Job, line: bytes, least: float) -> str:
    """Return what the comparison shows, for the record; ``line`` is what it has printed.

    Raises ModelRejected when the same token is likeliest on less than ``least`` of the
    positions, unless forced, and for numbers that are not finite.
    """
    if not line:
        raise ModelRejected(f"{job.output} could not be compared with torch; it is not kept")
    agreement, divergence, tokens = (float(figure) for figure in line.split()[1:])
    remark = f"the same likeliest token as torch at {agreement:.1%} of {tokens:.0f} positions, KL {divergence:.3f}"
    if agreement >= least and divergence >= 0:
        return remark
    remark += f": below the floor of {least:.0%}"
    if not job.force:
        raise ModelRejected(f"{job.output} does not say what its source says: {remark}. Use --force to keep it")
    return remark


def finish(job: Job, made: Path) -> tuple[tuple[str, ...], int]:
    """Lay the made files and the checkpoint's own tokenizer into the job's folder; return names and context."""
    source, folder = Path(job.source), Path(job.folder)
    for name in TOKENIZER:
        if (source / name).is_file():
            shutil.copyfile(source / name, made / name)
    settings = read_object(made / SETTINGS)
    model = settings["model"]
    if job.context_tokens is not None:  # for a phone
        model["context_length"] = min(int(model["context_length"]), job.context_tokens)
        settings["search"]["max_length"] = model["context_length"]
        model["decoder"]["session_options"]["intra_op_num_threads"] = PROFILES["phone"].threads
        (made / SETTINGS).write_text(json.dumps(settings, indent=4), encoding="utf-8")
    names = tuple(sorted(path.name for path in made.iterdir() if path.is_file()))
    for name in names:
        (made / name).replace(folder / name)
    return names, int(model["context_length"])


def require_tokenizer(source: Path) -> None:
    """Raise ModelRejected when the checkpoint has none that the model could be served with."""
    if not (source / "tokenizer.json").is_file():
        raise ModelRejected(f"{source} has no tokenizer.json, which the model is served with")


def read_object(path: Path) -> dict[str, Any]:
    """Return a JSON object. Raises ModelRejected."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelRejected(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ModelRejected(f"{path} is not a JSON object")
    return found
