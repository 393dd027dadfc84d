"""Is this GGUF a LoRA adapter for that base model? Told before the native loader sees either."""

from __future__ import annotations

import math
from collections.abc import Mapping

from agent.errors import ModelRejected
from agent.models.gguf_check import GgufHeader

A, B = ".lora_a", ".lora_b"
Shape = tuple[int, ...]  # as GGUF writes it: the length of a row first


def check_adapter(adapter: GgufHeader, base: GgufHeader) -> None:
    """Raise ModelRejected, with the reason, unless the adapter fits the base model."""
    if adapter.scalars.get("general.type") != "adapter" or adapter.scalars.get("adapter.type") != "lora":
        raise ModelRejected("it is no LoRA adapter: general.type and adapter.type do not say so")
    if adapter.architecture != base.architecture:
        raise ModelRejected(f"it is for the architecture {adapter.architecture}, its model is {base.architecture}")
    alpha = adapter.scalars.get("adapter.lora.alpha")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ModelRejected("adapter.lora.alpha is missing or no number")
    if "adapter.alora.invocation_tokens" in adapter.keys:
        raise ModelRejected("it is an activated LoRA (aLoRA), which is switched on inside of a prompt: not supported")
    pairs = {name.removesuffix(A).removesuffix(B) for name in adapter.shapes}
    if not pairs:
        raise ModelRejected("it has no tensors")
    for name in sorted(pairs):
        _check_pair(name, adapter.shapes, base.shapes)


def _check_pair(name: str, shapes: Mapping[str, Shape], base: Mapping[str, Shape]) -> None:
    if name in shapes:
        raise ModelRejected(f"tensor {name} is neither {A} nor {B}: only pairs of those can be applied")
    a, b, weight = shapes.get(name + A), shapes.get(name + B), base.get(name)
    if a is None or b is None:
        raise ModelRejected(f"tensor {name} has {A if b is None else B} only")
    if weight is None:
        raise ModelRejected(f"its model has no tensor {name}: it was made for another model")
    if not len(a) == len(b) == len(weight) == 2:
        raise ModelRejected(f"tensor {name} is not a pair of matrices for a matrix")
    if name == "token_embd.weight":  # looked up by token, so its A is the other way round
        fits = weight == (b[1], a[1]) and a[0] == b[0]
    else:
        fits = weight == (a[0], b[1]) and a[1] == b[0]
    if not fits:
        shown = f"A {list(a)}, B {list(b)} for {list(weight)}"
        raise ModelRejected(f"tensor {name} does not fit its model ({shown}): it was made for another model")
