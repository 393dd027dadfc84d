"""A llama of two layers with random weights: small enough to quantize in milliseconds, of no use for anything else."""

import struct

import numpy as np
from fakes.gguf import ARRAY, F32, I32, STRING, U32, encode, text

WIDTH, HIDDEN, HEADS, KV_HEADS, LAYERS = 256, 512, 4, 2, 2
WORDS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "▁the", "e", "s", "t"]
_KINDS = {"F32": (0, "<f4"), "F16": (1, "<f2")}


def metadata(architecture="llama", **changes):
    values = {
        "general.architecture": (STRING, architecture),
        "general.name": (STRING, "Tiny"),
        f"{architecture}.context_length": (U32, 4096),
        f"{architecture}.embedding_length": (U32, WIDTH),
        f"{architecture}.block_count": (U32, LAYERS),
        f"{architecture}.feed_forward_length": (U32, HIDDEN),
        f"{architecture}.attention.head_count": (U32, HEADS),
        f"{architecture}.attention.head_count_kv": (U32, KV_HEADS),
        f"{architecture}.attention.layer_norm_rms_epsilon": (F32, 1e-5),
        f"{architecture}.rope.dimension_count": (U32, WIDTH // HEADS),
        "tokenizer.ggml.model": (STRING, "llama"),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, WORDS)),
        "tokenizer.ggml.scores": (ARRAY, (F32, [0.0] * len(WORDS))),
        "tokenizer.ggml.token_type": (ARRAY, (I32, [2, 3, 3, *[6] * 256, *[1] * 6])),
    }
    return values | changes


def shapes():
    """Return the tensors' shapes as numpy has them: rows first."""
    narrow = WIDTH // HEADS * KV_HEADS
    found = {"token_embd.weight": (len(WORDS), WIDTH), "output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        found |= {
            f"blk.{layer}.attn_norm.weight": (WIDTH,),
            f"blk.{layer}.attn_q.weight": (WIDTH, WIDTH),
            f"blk.{layer}.attn_k.weight": (narrow, WIDTH),
            f"blk.{layer}.attn_v.weight": (narrow, WIDTH),
            f"blk.{layer}.attn_output.weight": (WIDTH, WIDTH),
            f"blk.{layer}.ffn_norm.weight": (WIDTH,),
            f"blk.{layer}.ffn_gate.weight": (HIDDEN, WIDTH),
            f"blk.{layer}.ffn_up.weight": (HIDDEN, WIDTH),
            f"blk.{layer}.ffn_down.weight": (WIDTH, HIDDEN),
        }
    return found


TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"


def write(path, *, kind="F16", architecture="llama", seed=1, chats=False):
    """Write the file; matrices are of ``kind``, vectors F32; with a chat template if it ``chats``."""
    random = np.random.default_rng(seed)
    table, data = b"", b""
    for name, shape in shapes().items():
        number, form = _KINDS[kind if len(shape) > 1 else "F32"]
        values = random.normal(scale=0.05, size=shape) if len(shape) > 1 else np.ones(shape)
        table += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), number, len(data))
        raw = values.astype(form).tobytes()
        data += raw + b"\0" * (-len(raw) % 32)
    head = metadata(architecture, **({"tokenizer.chat_template": (STRING, TEMPLATE)} if chats else {}))
    out = b"GGUF" + struct.pack("<IQQ", 3, len(shapes()), len(head))
    out += b"".join(text(key) + struct.pack("<I", kind) + encode(kind, value) for key, (kind, value) in head.items())
    out += table
    path.write_bytes(out + b"\0" * (-len(out) % 32) + data)
    return path


def write_importance(path, *, old=False, broken=False):
    """Write an importance matrix for the model as llama-imatrix does: GGUF, or the older form."""
    rows = {
        name: np.linspace(0.5, 2, shape[1], dtype="<f4")
        for name, shape in shapes().items()
        if "blk" in name and len(shape) > 1
    }
    if old:
        out = struct.pack("<i", len(rows))
        for name, values in rows.items():
            raw = name.encode()
            out += struct.pack("<i", len(raw)) + raw + struct.pack("<ii", 3, values.size) + (values * 3).tobytes()
        path.write_bytes(out[: len(out) // 2] if broken else out)
        return path
    tensors = {}
    for name, values in rows.items():
        tensors[f"{name}.in_sum2"] = np.full(values.size, np.nan, "<f4") if broken else values * 7
        tensors[f"{name}.counts"] = np.array([7], "<f4")
    head = (("general.type", STRING, "imatrix"), ("imatrix.chunk_size", U32, 512))
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(head))
    out += b"".join(text(key) + struct.pack("<I", kind) + encode(kind, value) for key, kind, value in head)
    data = b""
    for name, values in tensors.items():
        out += text(name) + struct.pack("<IQIQ", 1, values.size, 0, len(data))
        data += values.tobytes() + b"\0" * (-values.nbytes % 32)
    path.write_bytes(out + b"\0" * (-len(out) % 32) + data)
    return path
