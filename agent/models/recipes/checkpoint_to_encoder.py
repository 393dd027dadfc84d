"""The Hugging Face checkpoint of an encoder to ONNX in FP32, by optimum. Loses nothing, which is shown."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path

from agent.encoder import EncoderTask
from agent.errors import ModelRejected
from agent.models.build_env import ENVIRONMENTS, BuildEnvironment
from agent.models.recipes.encoder_files import GRAPH, copy_descriptions, count_weights, longest_input, read_graph
from agent.models.recipes.environment_program import run_program
from agent.models.recipes.golden import TEXTS
from agent.models.recipes.job import Job, Made, Progress, Tell
from agent.types import ModelFormat

MOST_DIFFERENCE = 1e-3  # between torch and the graph, of the largest output
_POOLING = Path("1_Pooling", "config.json")  # of sentence-transformers; the store is flat: pooling_config.json
_TASKS = {
    EncoderTask.EMBED: "feature-extraction",
    EncoderTask.CLASSIFY: "text-classification",
    EncoderTask.RERANK: "text-classification",
    EncoderTask.TAG: "token-classification",
}  # as optimum names them
_EXPORT = """
source, folder, task, architecture, texts = sys.argv[1:]
print("STEP exporting", flush=True)
from optimum.exporters.onnx import main_export
# Its own validation asks for 1e-5 and would refuse good models; the comparison below is ours.
main_export(source, output=folder, task=task, library_name="transformers", device="cpu", dtype="fp32",
            do_validation=False, trust_remote_code=False, local_files_only=True)
print("STEP comparing with torch", flush=True)
import onnxruntime, torch, transformers
from tokenizers import Tokenizer
model = getattr(transformers, architecture).from_pretrained(source, local_files_only=True, dtype=torch.float32).eval()
session = onnxruntime.InferenceSession(folder + "/model.onnx", providers=["CPUExecutionProvider"])
names = {value.name for value in session.get_inputs()}
tokenizer = Tokenizer.from_file(source + "/tokenizer.json")
tokenizer.no_padding()
tokenizer.enable_truncation(128)
worst = 0.0
for text in open(texts, encoding="utf-8").read().splitlines():
    read = tokenizer.encode(text)
    rows = {"input_ids": read.ids, "attention_mask": read.attention_mask, "token_type_ids": read.type_ids}
    tensors = {name: torch.tensor([row]) for name, row in rows.items() if name in names}
    with torch.no_grad():
        wanted = model(**tensors)[0].numpy()
    got = session.run(None, {name: tensor.numpy() for name, tensor in tensors.items()})[0]
    worst = max(worst, float(abs(got - wanted).max() / abs(wanted).max()))
print("DIFFERENCE", worst, flush=True)
"""


def make(job: Job, tell: Tell) -> Made:
    """Write ``model.onnx`` and what belongs to it. Raises WrongState, ModelRejected."""
    environment = BuildEnvironment(Path(job.environment))
    source, folder = Path(job.source), Path(job.folder)
    if not (source / "tokenizer.json").is_file():
        raise ModelRejected(f"{source} has no tokenizer.json, which an ONNX encoder is read with")
    partial = folder / "export"
    shutil.rmtree(partial, ignore_errors=True)
    steps: list[str] = []
    differences: list[float] = []

    def follow(line: bytes) -> None:
        word, _, rest = line.decode("utf-8", "replace").strip().partition(" ")
        if word == "STEP":
            steps.append(rest)
            tell(Progress(step=rest, done=len(steps), total=3))
        elif word == "DIFFERENCE":
            differences.append(float(rest))

    tell(Progress(step="starting torch", done=0, total=3))
    run_program(
        environment,
        _EXPORT,
        [str(source), str(partial), _TASKS[EncoderTask(job.task)], _architecture(source), str(TEXTS)],
        follow,
        what=f"optimum does not export {source}",
    )
    if not differences or not differences[-1] <= MOST_DIFFERENCE:  # also what is no number
        raise ModelRejected(f"the graph of {source} gives other numbers than torch does: {differences} of the largest")
    weights = count_weights(read_graph(partial, force=True))
    names = sorted(path.name for path in partial.iterdir() if path.name.startswith(GRAPH))
    for name in names:
        (partial / name).replace(folder / name)
    shutil.rmtree(partial)
    descriptions = set(copy_descriptions(source, folder))
    if (source / _POOLING).is_file():
        shutil.copyfile(source / _POOLING, folder / "pooling_config.json")
        descriptions.add("pooling_config.json")
    pins = dict(pin.split("==") for pin in ENVIRONMENTS["checkpoints"].pins if "==" in pin)
    return Made(
        files=(*names, *sorted(descriptions)),
        format=ModelFormat.ONNX_ENCODER,
        versions={"onnx": version("onnx")} | {name: pins[name] for name in ("optimum-onnx", "transformers", "torch")},
        remark=f"exported without loss: largest difference to torch {differences[-1]:.1e} of the largest output",
        parameters=weights,
        context_tokens=longest_input(source),
    )


def _architecture(source: Path) -> str:
    return str(json.loads((source / "config.json").read_bytes())["architectures"][0])
