"""Encoders whose outputs can be told by hand: each word has a row of numbers, and nothing else is computed.

Not models of anything: they stand in for trained ones where no weights are at hand.
"""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from agent.types import ModelFile, ModelFormat

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "good", "bad", "Anna", "Berta", "Paris", "and"]
ID = {word: index for index, word in enumerate(WORDS)}
LABELS = ["negative", "positive"]
TAGS = ["O", "B-PER", "I-PER", "B-LOC"]
INPUTS = ("input_ids", "attention_mask", "token_type_ids")

# Numbers of each word; what is not named has zeros.
VECTORS = {
    "[CLS]": [1, 0, 0, 0],
    "[SEP]": [0, 0, 0, 1],
    "good": [0, 4, 0, 0],
    "bad": [0, 0, 4, 0],
    "[PAD]": [9, 9, 9, 9],
}
SCORES = {"good": [-1, 1], "bad": [1, -1], "[PAD]": [50, 50]}
TAG_SCORES = {"Anna": [0, 9, 0, 0], "Berta": [0, 0, 9, 0], "Paris": [0, 0, 0, 9]} | {
    word: [9, 0, 0, 0] for word in ("[CLS]", "[SEP]", "[UNK]", "good", "bad", "and")
}
FITS = {"good": [1], "bad": [-1], "[PAD]": [50]}


def table(rows):
    width = len(next(iter(rows.values())))
    return np.array([rows.get(word, [0] * width) for word in WORDS], np.float32)


def write(
    folder: Path, rows, *, summed, config=None, opset=17, kind=TensorProto.INT64, shape=("b", "s"), inputs=INPUTS
):
    """Write an encoder; ``summed``: its output is one row a text, the sum over its tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(graph(rows, summed=summed, opset=opset, kind=kind, shape=shape, inputs=inputs), folder / "model.onnx")
    write_tokenizer(folder)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def graph(rows, *, summed, opset, kind, shape, inputs):
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["hidden"])]
    width = len(next(iter(rows.values())))
    outputs = [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [*shape, width])]
    weights = [numpy_helper.from_array(table(rows), "table"), numpy_helper.from_array(np.array([1]), "tokens")]
    if summed:
        nodes += [
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["wide_mask"]),
            helper.make_node("Mul", ["hidden", "wide_mask"], ["own"]),
            helper.make_node("ReduceSum", ["own", "tokens"], ["logits"], keepdims=0),
        ]
        weights.append(numpy_helper.from_array(np.array([2]), "last"))
        outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [shape[0], width])]
    given = [helper.make_tensor_value_info(name, kind, list(shape)) for name in inputs]
    found = helper.make_graph(nodes, "plain", given, outputs, weights)
    return helper.make_model(found, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def write_tokenizer(folder):
    tokenizer = Tokenizer(models.WordLevel(ID, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ID["[CLS]"]), ("[SEP]", ID["[SEP]"])],
    )
    # As real files have it: their examples were cut and filled up.
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    tokenizer.save(str(folder / "tokenizer.json"))


def embedder(folder, **changes):
    return write(folder, VECTORS, summed=False, config={"architectures": ["BertModel"]}, **changes)


def classifier(folder, **changes):
    named = {str(index): label for index, label in enumerate(LABELS)}
    config = {"architectures": ["BertForSequenceClassification"], "id2label": named, **changes}
    return write(folder, SCORES, summed=True, config=config)


def tagger(folder):
    named = {str(index): label for index, label in enumerate(TAGS)}
    config = {"architectures": ["BertForTokenClassification"], "id2label": named}
    return write(folder, TAG_SCORES, summed=False, config=config)


def reranker(folder):
    config = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    return write(folder, FITS, summed=True, config=config)


def model_file(folder, name="plain", **changes):
    given = {"name": name, "path": str(folder), "format": ModelFormat.ONNX_ENCODER, "sha256": "e" * 64}
    return ModelFile(**(given | {"context_tokens": 8} | changes))
