"""Writes PEFT LoRA adapters with random weights, of the sizes of SmolLM2-135M."""

import json

import numpy as np

SIZES = {"q_proj": (576, 576), "k_proj": (192, 576), "v_proj": (192, 576), "down_proj": (576, 1536)}  # rows, columns
RANK = 4
ALPHA = 8


def matrices(layers=(0,), parts=("q_proj",), rank=RANK, seed=1):
    """Return {(layer, part): (A, B)}."""
    random = np.random.default_rng(seed)
    found = {}
    for layer in layers:
        for part in parts:
            rows, columns = SIZES[part]
            a = random.normal(0, 0.3, (rank, columns)).astype(np.float32)
            b = random.normal(0, 0.3, (rows, rank)).astype(np.float32)
            found[layer, part] = a, b
    return found


def module(layer, part):
    return f"model.layers.{layer}.{'mlp' if part == 'down_proj' else 'self_attn'}.{part}"


def write(folder, matrices, *, lora_alpha=ALPHA, extra=(), **config):
    folder.mkdir()
    told = {"peft_type": "LORA", "r": RANK, "lora_alpha": lora_alpha, "bias": "none", "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(told | config))
    tensors = dict(extra)
    for (layer, part), (a, b) in matrices.items():
        name = f"base_model.model.{module(layer, part)}"
        tensors[f"{name}.lora_A.weight"] = a
        tensors[f"{name}.lora_B.weight"] = b
    (folder / "adapter_model.safetensors").write_bytes(safetensors(tensors))
    return folder


def safetensors(tensors, kind="F32"):
    table, data = {"__metadata__": {"format": "pt"}}, b""
    for name, values in tensors.items():
        raw = values.astype("<f4").tobytes() if kind == "F32" else bf16(values)
        table[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    header = json.dumps(table).encode()
    return len(header).to_bytes(8, "little") + header + data


def bf16(values):
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
