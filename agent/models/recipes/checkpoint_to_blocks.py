"""The way from a checkpoint to ONNX where the builder of onnxruntime-genai does not know the model: by optimum.

optimum exports the graph in FP32; onnxruntime's own quantizer then writes the matrices in blocks
of 4 or 8 bits, in the same environment. The graph has more and smaller operators than the builder's, and the
embeddings stay FP32: slower and larger.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx

from agent.errors import ModelRejected
from agent.models.build_env import ENVIRONMENTS, BuildEnvironment
from agent.models.recipes.encoder_files import GRAPH, count_weights
from agent.models.recipes.environment_program import run_program
from agent.models.recipes.generation_files import (
    COMPARE,
    MARK,
    SETTINGS,
    finish,
    judged,
    read_object,
    require_tokenizer,
)
from agent.models.recipes.importance import TEXT
from agent.models.recipes.job import Job, Made, Progress, Tell
from agent.types import ModelFormat

_PAST_DIMENSIONS = 4  # batch, heads, tokens, width
_BLOCK = 32  # weights that share a scale
_LEAST = {4: 0.5, 8: 0.9}  # bits -> share of positions with the same likeliest token as in torch
_EXPORT = """
source, folder = sys.argv[1:]
from optimum.exporters.onnx import main_export
# Its own validation asks for 1e-5 and would refuse good models; what is made of it is compared.
main_export(source, output=folder, task="text-generation-with-past", library_name="transformers", device="cpu",
            dtype="fp32", do_validation=False, trust_remote_code=False, local_files_only=True)
"""
# Where the last matrix shares its weights with the embeddings, the exporter writes Transpose -> MatMul, which no
# quantizer touches: it gets weights of its own.
_ROUND = """
source, exported, folder, bits, block, text = sys.argv[1:]
import numpy, onnx
from onnx import numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
print("ROUNDING", flush=True)
graph = onnx.load(exported + "/model.onnx")
stored = {tensor.name: tensor for tensor in graph.graph.initializer}
for node in list(graph.graph.node):
    if node.op_type == "Transpose" and node.input[0] in stored:
        order = next((list(one.ints) for one in node.attribute if one.name == "perm"), None)
        values = numpy.transpose(numpy_helper.to_array(stored[node.input[0]]), order)
        graph.graph.initializer.append(numpy_helper.from_array(numpy.ascontiguousarray(values), node.output[0]))
        graph.graph.node.remove(node)
quantizer = MatMulNBitsQuantizer(graph, bits=int(bits), block_size=int(block), is_symmetric=False, accuracy_level=4)
quantizer.process()
onnx.save(quantizer.model.model, folder + "/model.onnx", save_as_external_data=True, location="model.onnx.data")
del graph, quantizer
"""


def make(job: Job, tell: Tell) -> Made:
    """Write ``model.onnx``, its weights, ``genai_config.json`` and the tokenizer. Raises WrongState, ModelRejected.

    An export that was finished before is not made again.
    """
    bits = 4 if job.recipe.endswith("int4") else 8
    source, folder = Path(job.source), Path(job.folder)
    require_tokenizer(source)
    environment = BuildEnvironment(Path(job.environment))
    exported, made = folder / "exported", folder / "made"
    if not exported.is_dir():
        tell(Progress(step="exporting", done=0, total=3))
        partial = folder / ".partial-exported"
        shutil.rmtree(partial, ignore_errors=True)
        what = f"optimum does not export {source}"
        run_program(environment, _EXPORT, [str(source), str(partial)], lambda _: None, what=what)
        partial.rename(exported)
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    graph = onnx.load(exported / GRAPH, load_external_data=False)
    weights = count_weights(graph)
    settings = _settings(read_object(source / "config.json"), graph)
    (made / SETTINGS).write_text(json.dumps(settings, indent=4), encoding="utf-8")
    found: list[bytes] = []

    def follow(line: bytes) -> None:
        if line.startswith(b"ROUNDING"):
            tell(Progress(step=f"rounding to {bits} bits", done=1, total=3))
        elif line.startswith(b"COMPARING"):
            tell(Progress(step="comparing with torch", done=2, total=3))
        elif line.startswith(MARK):
            found.append(line)

    run_program(
        environment,
        _ROUND + COMPARE,
        [str(source), str(exported), str(made), str(bits), str(_BLOCK), str(TEXT)],
        follow,
        what=f"what optimum exports of {source} cannot be rounded",
    )
    remark = judged(job, found[-1] if found else b"", _LEAST[bits])
    names, context = finish(job, made)
    pins = dict(pin.split("==") for pin in ENVIRONMENTS["checkpoints"].pins if "==" in pin)
    return Made(
        files=names,
        format=ModelFormat.ONNX_GENERATION,
        versions={name: pins[name] for name in ("optimum-onnx", "onnxruntime", "transformers", "torch")},
        remark=remark,
        parameters=weights,
        context_tokens=context,
    )


def _settings(config: dict[str, Any], graph: onnx.ModelProto) -> dict[str, Any]:
    """Return what onnxruntime-genai has to know of the graph. Raises ModelRejected for one that keeps no past."""
    inputs = {value.name: value.type.tensor_type.shape.dim for value in graph.graph.input}
    first = inputs.get("past_key_values.0.key")
    if not {"input_ids", "attention_mask"} <= inputs.keys() or first is None or len(first) != _PAST_DIMENSIONS:
        raise ModelRejected(f"the exported graph wants {', '.join(sorted(inputs))[:200]}: no past that could be kept")
    heads = int(config["num_attention_heads"])
    context = int(config.get("max_position_embeddings", 2048))
    names = {name: name for name in ("input_ids", "attention_mask", "position_ids") if name in inputs}
    return {
        "model": {
            "bos_token_id": config.get("bos_token_id"),
            "eos_token_id": config.get("eos_token_id"),
            "pad_token_id": config.get("pad_token_id") or config.get("eos_token_id"),
            "context_length": context,
            "type": config["model_type"],
            "vocab_size": config["vocab_size"],
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": GRAPH,
                "head_size": first[3].dim_value or int(config.get("head_dim") or config["hidden_size"] // heads),
                "hidden_size": config["hidden_size"],
                "num_attention_heads": heads,
                "num_hidden_layers": sum(name.endswith(".key") for name in inputs),
                "num_key_value_heads": first[1].dim_value or config.get("num_key_value_heads") or heads,
                "inputs": names
                | {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"},
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {"max_length": context, "past_present_share_buffer": False, "do_sample": False},
    }
