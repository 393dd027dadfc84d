"""A Hugging Face checkpoint on disk: looked at without running anything of it, converted in a child."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from agent.encoder import EncoderTask
from agent.errors import ModelRejected
from agent.models.safetensors_check import SafeTensor, tensors_in

# Class in config.json -> architecture of llama.cpp. Only those whose logits were seen to be those of the checkpoint.
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma3ForCausalLM": "gemma3",
    "Phi3ForCausalLM": "phi3",
}
# Classes that become ONNX by optimum only: neither onnxruntime-genai's builder nor the tested part of llama.cpp's converter.
EXPORTED = ("GPTNeoXForCausalLM",)
# Beginnings of the classes of encoders whose exported graphs were seen to give what torch gives.
ENCODERS = ("Bert", "Roberta", "XLMRoberta", "DistilBert", "Electra", "MPNet", "Albert", "DebertaV2", "ModernBert")
_HEADS = {
    "Model": EncoderTask.EMBED,
    "ForSequenceClassification": EncoderTask.CLASSIFY,
    "ForTokenClassification": EncoderTask.TAG,
}
_LONGEST_CONFIG = 1 << 20
_TYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What the files say."""

    architecture: str  # of llama.cpp; of an encoder, its class
    encoder: EncoderTask | None = None  # None: it writes text
    parameters: int
    bytes: int
    kind: str  # f32, f16 or bf16: what a GGUF file must have to lose nothing
    files: tuple[Path, ...]  # that the conversion reads
    context_tokens: int | None = None  # where it is less than the configuration says
    only_exported: bool = False  # to ONNX, by optimum
    fault: str = ""  # why llama.cpp would not compute what the checkpoint does


def look(folder: Path) -> Checkpoint:
    """Return what a checkpoint is. Raises ModelRejected with what is wrong."""
    config = _json(folder / "config.json")
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    encoder = _encoder(str(name), config)
    if name not in ARCHITECTURES and name not in EXPORTED and encoder is None:
        raise ModelRejected(
            f"{folder}: {str(name)[:80]} is not converted; {', '.join((*ARCHITECTURES, *EXPORTED))} are, and of encoders "
            f"{', '.join(ENCODERS)}, each with {', '.join(_HEADS)}"
        )
    tokenizer = folder / "tokenizer_config.json"
    if "auto_map" in config or (tokenizer.exists() and "auto_map" in _json(tokenizer)):
        raise ModelRejected(f"{folder} brings code of its own (auto_map), which is never run here")
    if config.get("quantization_config"):
        raise ModelRejected(f"{folder} is quantized already; convert the original")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelRejected(f"{folder} holds no safetensors; weights in pickled files are never loaded")
    types: dict[str, int] = {}
    for path in weights:
        for tensor in _tensors(path):
            types[tensor.kind] = types.get(tensor.kind, 0) + tensor.weights
    if encoder:  # positions as they were counted at training; no weights
        types = {kind: count for kind, count in types.items() if kind != "I64"}
    if unknown := types.keys() - _TYPES.keys():
        raise ModelRejected(
            f"{folder} has tensors of type {', '.join(sorted(unknown))}; {', '.join(_TYPES)} are converted"
        )
    # Mixed halves have no common 16-bit type without loss.
    kind = next(iter(types)) if len(types) == 1 else "F32"
    files = tuple(
        sorted(
            path for path in folder.iterdir() if path.suffix in {".safetensors", ".json", ".jinja", ".model", ".txt"}
        )
    )
    return Checkpoint(
        architecture=ARCHITECTURES.get(str(name), str(name)),
        encoder=encoder,
        parameters=sum(types.values()),
        bytes=sum(path.stat().st_size for path in weights),
        kind=_TYPES[kind],
        files=files,
        context_tokens=_window(config) if name == "Phi3ForCausalLM" else None,
        only_exported=name in EXPORTED,
        fault=_FAULTS[str(name)](folder, config) if name in _FAULTS else "",
    )


def _encoder(name: str, config: dict[str, Any]) -> EncoderTask | None:
    family = next((family for family in ENCODERS if name.removeprefix(family) in _HEADS), None)
    if family is None:
        return None
    task = _HEADS[name.removeprefix(family)]
    labels = config.get("id2label")
    one = len(labels) == 1 if isinstance(labels, dict) else config.get("num_labels") == 1
    return EncoderTask.RERANK if task is EncoderTask.CLASSIFY and one else task


def _gemma3_fault(folder: Path, config: dict[str, Any]) -> str:
    """Return why llama.cpp reads it otherwise: what it does not take from the file, it assumes of every Gemma 3."""
    if not (folder / "tokenizer.model").is_file():
        return "it has no tokenizer.model, and its tokenizer.json is taken for one that works on bytes"
    width = config.get("head_dim", 256)
    if config.get("query_pre_attn_scalar", 256) != width:
        return f"its attention is scaled by query_pre_attn_scalar, which is not head_dim ({width}): llama.cpp takes head_dim"
    ropes = config.get("rope_parameters") or {}
    local = (ropes.get("sliding_attention") or {}).get("rope_theta") or config.get("rope_local_base_freq", 10_000)
    if local != 10_000:
        return f"its local layers turn with the base {local}: llama.cpp takes 10000"
    scaled = {str(rope.get("rope_type", "default")) for rope in ropes.values() if isinstance(rope, dict)} - {"default"}
    if config.get("rope_scaling") or scaled:
        return "its positions are scaled (rope_scaling), which was not tried"
    layers = config.get("layer_types")
    count = len(layers) if isinstance(layers, list) else 0
    pattern = ["full_attention" if (at + 1) % 6 == 0 else "sliding_attention" for at in range(count)]
    if (layers and layers != pattern) or config.get("sliding_window_pattern", 6) != 6:
        return "not every sixth layer is the one that sees everything: llama.cpp assumes that"
    return "" if config.get("hidden_activation", "gelu_pytorch_tanh") == "gelu_pytorch_tanh" else "it does not use Gelu"


def _phi3_fault(folder: Path, config: dict[str, Any]) -> str:
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if scaling.get("long_factor"):
        return (
            "its positions are stretched by two sets of factors (longrope): transformers chooses by the length of a "
            "text, llama.cpp once by the size of the context, so short texts would be read otherwise"
        )
    if not (folder / "tokenizer.model").is_file():
        return "it has no tokenizer.model"
    return "" if config.get("hidden_act", "silu") == "silu" else "it does not use SiLU"


def _window(config: dict[str, Any]) -> int | None:
    """Return how many tokens each layer of Phi-3 sees; llama.cpp lets it see all, which is the same up to there."""
    window = config.get("sliding_window")
    return window if type(window) is int and window > 0 else None


_FAULTS = {"Gemma3ForCausalLM": _gemma3_fault, "Phi3ForCausalLM": _phi3_fault}


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LONGEST_CONFIG:
            raise ModelRejected(f"{path} is too large for what it should be")
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelRejected(f"{path} cannot be read: {error.strerror}; is that the folder of a checkpoint?") from error
    except (ValueError, RecursionError) as error:
        raise ModelRejected(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ModelRejected(f"{path} is not a JSON object")
    return found


def _tensors(path: Path) -> list[SafeTensor]:
    try:
        return tensors_in(path)
    except ModelRejected as error:
        raise ModelRejected(f"{path}: {error}") from error
