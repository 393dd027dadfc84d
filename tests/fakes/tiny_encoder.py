"""An encoder of one layer with random weights, as an ONNX folder: of no use for anything but making another of it."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

WIDTH, HIDDEN = 32, 64
CHARACTERS = [chr(code) for code in range(33, 127)]
LOWEST = float(np.finfo(np.float32).min)


def write(folder: Path, *, seed=0, outlier=0.0, opset=17) -> Path:
    """Write model.onnx (input_ids, attention_mask -> last_hidden_state), tokenizer.json and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(graph(seed=seed, outlier=outlier, opset=opset), folder / "model.onnx")
    words = {"[UNK]": 0, "[PAD]": 1} | {character: number + 2 for number, character in enumerate(CHARACTERS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"architectures": ["BertModel"], "model_type": "bert", "max_position_embeddings": 128}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def graph(*, seed, outlier, opset):
    """Embedding, attention over itself under the mask, a layer of two with Gelu as exporters write it."""
    random = np.random.default_rng(seed)
    embedding = random.normal(0, 1, (len(CHARACTERS) + 2, WIDTH)).astype(np.float32)
    embedding[2, 0] += outlier
    weights = {
        "embedding": embedding,
        "query": random.normal(0, 0.3, (WIDTH, WIDTH)).astype(np.float32),
        "up": random.normal(0, 0.2, (WIDTH, HIDDEN)).astype(np.float32),
        "up_bias": random.normal(0, 0.1, HIDDEN).astype(np.float32),
        "down": random.normal(0, 0.2, (HIDDEN, WIDTH)).astype(np.float32),
        "one": np.array(1, np.float32),
        "half": np.array(0.5, np.float32),
        "root": np.array(2**0.5, np.float32),
        "lowest": np.array(LOWEST, np.float32),
        "axis": np.array([1], np.int64),
    }
    steps = [
        ("Gather", ["embedding", "input_ids"], "x", {}),
        ("Cast", ["attention_mask"], "mask", {"to": TensorProto.FLOAT}),
        ("Sub", ["one", "mask"], "hidden_mask", {}),
        ("Mul", ["hidden_mask", "lowest"], "flat_penalty", {}),
        ("Unsqueeze", ["flat_penalty", "axis"], "penalty", {}),
        ("MatMul", ["x", "query"], "q", {}),
        ("Transpose", ["x"], "k", {"perm": [0, 2, 1]}),
        ("MatMul", ["q", "k"], "raw_scores", {}),
        ("Add", ["raw_scores", "penalty"], "scores", {}),
        ("Softmax", ["scores"], "shares", {"axis": -1}),
        ("MatMul", ["shares", "x"], "mixed", {}),
        ("Add", ["mixed", "x"], "y", {}),
        ("MatMul", ["y", "up"], "wide", {}),
        ("Add", ["up_bias", "wide"], "u", {}),
        ("Div", ["u", "root"], "u_scaled", {}),
        ("Erf", ["u_scaled"], "u_erf", {}),
        ("Add", ["u_erf", "one"], "u_gate", {}),
        ("Mul", ["u", "u_gate"], "u_twice", {}),
        ("Mul", ["u_twice", "half"], "gelu", {}),
        ("MatMul", ["gelu", "down"], "z", {}),
        ("Add", ["z", "y"], "last_hidden_state", {}),
    ]
    nodes = [
        helper.make_node(kind, inputs, [output], name=output, **attributes)
        for kind, inputs, output, attributes in steps
    ]
    shape = ["batch", "sequence"]
    found = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*shape, WIDTH])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(found, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
