"""A decoder of two layers with random weights, in the files that onnxruntime-genai's builder writes.

It says nothing sensible, but in letters: other tokens are made unlikely.
"""

import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

WIDTH, HIDDEN, HEADS, KV_HEADS, LAYERS = 64, 96, 4, 2, 2
HEAD = WIDTH // HEADS
CONTEXT = 4096
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = 400
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = (
    "What is the capital of France? Count: one, two, three, Say hello. Write a word. Name a city. user assistant "
    "A long beginning that all of these have in common, word for word. card arrival lost refund red green Paris"
)


def tokenizer():
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 4,  # a row has more figures than there are tokens, as with real models
        special_tokens=CONTROL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator([TEXT] * 3, trainer)
    return made


class Graph:
    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.nodes, self.tensors = [], []

    def tensor(self, name, values):
        self.tensors.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def weights(self, name, *shape, scale=None):
        return self.tensor(name, (self.random.normal(size=shape) * (scale or shape[0] ** -0.5)).astype(np.float32))

    def node(self, operator, inputs, *outputs, **attributes):
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=outputs[0], **attributes))
        return outputs[0]

    def norm(self, name, given):
        scale = self.tensor(f"{name}.scale", np.ones(WIDTH, np.float32))
        return self.node("SimplifiedLayerNormalization", [given, scale], name, epsilon=1e-5, axis=-1)

    def attention(self, at, parts, past):
        """Attention written out: keys and values come back longer by the new ones. Places are told apart by the embedding."""
        heads = []
        for part, count in zip(parts, (HEADS, KV_HEADS, KV_HEADS), strict=True):
            apart = self.tensor(f"{part}.shape", np.array([0, 0, count, HEAD], np.int64))
            whole = self.node("Reshape", [part, apart], f"{part}.heads")
            heads.append(self.node("Transpose", [whole], f"{part}.turned", perm=[0, 2, 1, 3]))
        twice = self.tensor(f"twice.{at}", np.repeat(np.arange(KV_HEADS), HEADS // KV_HEADS))
        kept = []
        for old, new, name in zip(past, heads[1:], ("key", "value"), strict=True):
            present = self.node("Concat", [old, new], f"present.{at}.{name}", axis=2)
            kept.append(self.node("Gather", [present, twice], f"all.{at}.{name}", axis=1))
        turned = self.node("Transpose", [kept[0]], f"keys.{at}", perm=[0, 1, 3, 2])
        scores = self.node("MatMul", [self.node("Mul", [heads[0], "scale"], f"scaled.{at}"), turned], f"scores.{at}")
        weights = self.node("Softmax", [self.node("Add", [scores, "unseen"], f"masked.{at}")], f"weights.{at}", axis=-1)
        mixed = self.node("MatMul", [weights, kept[1]], f"mixed.{at}")
        flat = self.tensor(f"flat.{at}", np.array([0, 0, HEADS * HEAD], np.int64))
        turned = self.node("Transpose", [mixed], f"back.{at}", perm=[0, 2, 1, 3])
        return self.node("Reshape", [turned, flat], f"attended.{at}")

    def unseen(self):
        """Which places a token does not see: those after it."""
        self.tensor("scale", np.array(HEAD**-0.5, np.float32))
        zero = self.tensor("zero", np.array(0, np.int64))
        one = self.tensor("step", np.array(1, np.int64))
        count = self.node("Gather", [self.node("Shape", ["input_ids"], "ids_shape"), "second"], "count", axis=0)
        start = self.node("Sub", ["width", count], "start")
        axis = self.tensor("upright", np.array([1], np.int64))
        rows = self.node("Unsqueeze", [self.node("Range", [start, "width", one], "from"), axis], "rows")
        later = self.node("Greater", [self.node("Range", [zero, "width", one], "places_seen"), rows], "later")
        self.tensor("never", np.array(-1e9, np.float32))
        self.tensor("nothing", np.array(0, np.float32))
        self.node("Where", [later, "never", "nothing"], "unseen")

    def layer(self, at, given, *, grows=False):
        normed = self.norm(f"norm.{at}", given)
        wide, narrow = HEADS * HEAD, KV_HEADS * HEAD
        parts = [
            self.node("MatMul", [normed, self.weights(f"{part}.{at}", WIDTH, size, scale=0.3)], f"{part}.{at}.out")
            for part, size in (("q", wide), ("k", narrow), ("v", narrow))
        ]
        past = [f"past_key_values.{at}.{part}" for part in ("key", "value")]
        attended = (
            self.attention(at, parts, past)
            if grows
            else self.node(
                "GroupQueryAttention",
                [*parts, *past, "lengths", "total", "cos", "sin"],
                f"attended.{at}",
                *(f"present.{at}.{part}" for part in ("key", "value")),
                domain="com.microsoft",
                num_heads=HEADS,
                kv_num_heads=KV_HEADS,
                do_rotary=1,
                scale=HEAD**-0.5,
            )
        )
        out = self.node("MatMul", [attended, self.weights(f"o.{at}", wide, WIDTH)], f"o.{at}.out")
        given = self.node("Add", [given, out], f"between.{at}")
        normed = self.norm(f"norm2.{at}", given)
        gate = self.node("MatMul", [normed, self.weights(f"up.{at}", WIDTH, HIDDEN)], f"up.{at}.out")
        gate = self.node("Relu", [gate], f"gate.{at}")
        down = self.node("MatMul", [gate, self.weights(f"down.{at}", HIDDEN, WIDTH)], f"down.{at}.out")
        return self.node("Add", [given, down], f"layer.{at}")


def likely(made):
    """How much likelier each token is made: letters are, other text and what is no text is not."""
    bias = np.full(VOCABULARY, -30, np.float32)
    for token in range(made.get_vocab_size()):
        if made.decode([token]).strip().isalpha() and made.decode([token]).isascii():
            bias[token] = 0
    bias[2] = -1  # the end
    return bias


def model(*, seed=1, made=None, opset=21, context=CONTEXT, positions=False, last="Add", grows=False):
    """Return the graph as a ModelProto.

    ``positions``: it is told them, and adds something for each. ``last`` makes the logits: Add or Sum.
    ``grows``: as optimum exports it, with keys and values that come back longer. It needs positions.
    """
    graph = Graph(seed)
    graph.weights("embedding", VOCABULARY, WIDTH, scale=1.0)
    graph.tensor("one", np.array([1], np.int64))
    graph.tensor("second", np.array(1, np.int64))
    angles = np.outer(np.arange(context), 10_000.0 ** -(np.arange(HEAD // 2) / (HEAD // 2))).astype(np.float32)
    graph.tensor("cos", np.cos(angles))
    graph.tensor("sin", np.sin(angles))
    graph.node("ReduceSum", ["attention_mask", "one"], "tokens")
    graph.node("Cast", [graph.node("Sub", ["tokens", "one"], "before")], "lengths", to=TensorProto.INT32)
    width = graph.node("Gather", [graph.node("Shape", ["attention_mask"], "mask_shape"), "second"], "width", axis=0)
    graph.node("Cast", [width], "total", to=TensorProto.INT32)
    at = graph.node("Gather", ["embedding", "input_ids"], "embedded")
    if positions:
        graph.weights("places", context, WIDTH, scale=0.5)
        at = graph.node("Add", [at, graph.node("Gather", ["places", "position_ids"], "placed")], "told")
    if grows:
        graph.unseen()
    for layer in range(LAYERS):
        at = graph.layer(layer, at, grows=grows)
    bias = graph.tensor("bias", likely(made or tokenizer()))
    raw = graph.node("MatMul", [graph.norm("final", at), graph.weights("head", WIDTH, VOCABULARY, scale=0.3)], "raw")
    graph.node(last, [raw, bias], "logits")
    value = helper.make_tensor_value_info
    past = [f"past_key_values.{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
    present = [name.replace("past_key_values", "present") for name in past]
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "tiny",
            [
                value("input_ids", TensorProto.INT64, ["rows", "tokens"]),
                value("attention_mask", TensorProto.INT64, ["rows", "all"]),
                *(value(name, TensorProto.FLOAT, ["rows", KV_HEADS, "past", HEAD]) for name in past),
                *([value("position_ids", TensorProto.INT64, ["rows", "tokens"])] if positions else []),
            ],
            [
                value("logits", TensorProto.FLOAT, ["rows", "tokens", VOCABULARY]),
                *(value(name, TensorProto.FLOAT, ["rows", KV_HEADS, "past2", HEAD]) for name in present),
            ],
            graph.tensors,
        ),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )


def write(folder, *, data_file=None, config=(), **changes):
    """Write the folder; ``data_file`` keeps the weights beside the graph, ``config`` changes genai_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    made = tokenizer()
    made.save(str(folder / "tokenizer.json"))
    told = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    decoder = {
        "filename": "model.onnx",
        "head_size": HEAD,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask"},
        "outputs": {"logits": "logits"},
    }
    described = {
        "type": "llama",
        "vocab_size": VOCABULARY,
        "context_length": CONTEXT,
        "eos_token_id": 2,
        "decoder": decoder,
    }
    described |= dict(config)
    told = {"model": described, "search": {"past_present_share_buffer": not changes.get("grows", False)}}
    (folder / "genai_config.json").write_text(json.dumps(told))
    proto = model(made=made, **changes)
    if data_file:
        onnx.save(proto, folder / "model.onnx", save_as_external_data=True, location=data_file, size_threshold=1024)
    else:
        onnx.save(proto, folder / "model.onnx")
    return folder
