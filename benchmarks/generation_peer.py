"""A model that writes, in a process of its own: loaded, then timed in stretches on request.

    python benchmarks/generation_peer.py MODEL [REFERENCE]      a .gguf file or a folder with an ONNX model
    python benchmarks/generation_peer.py --genai FOLDER         the same by onnxruntime-genai's own generators

Reads one JSON object a line, writes one: what is asked for is under "do", see ``main``. No
scheduler, no sampling: what is timed are the calls by which the engine drives its runtimes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.append(sys.path.pop(0))  # in this folder is our onnx.py
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import psutil

from agent.engine import frames
from agent.engine.runtime import Chunk, Runtime, runtime_of
from agent.evaluation.predictions import predict
from agent.types import ModelFile, ModelFormat

CONTEXT_TOKENS = 512
PROMPT_TOKENS = 128
PIECE_TOKENS = 64  # of a prompt in one step
SLOTS = 4
MIB = 1 << 20


def main(arguments: list[str]) -> int:
    process = psutil.Process()
    if arguments[0] == "--genai":
        import onnxruntime_genai

        onnxruntime_genai.disable_telemetry_events()
        kinds: dict[str, Any] = {arguments[1]: Generators}
        del arguments[0]
    else:
        kinds = {name: runtime_of(_file(name).format) for name in arguments}  # importing is not timed
    before = process.memory_info().rss
    began = time.perf_counter()
    model: Any = _loaded(kinds[arguments[0]], arguments[0])
    load_s = time.perf_counter() - began
    reference = _loaded(kinds[arguments[1]], arguments[1]) if len(arguments) > 1 else None
    tokens = [100 + 37 * at % 20_000 for at in range(CONTEXT_TOKENS)]
    for line in sys.stdin:
        asked = json.loads(line)
        match asked["do"]:
            case "load":
                answer: dict[str, Any] = {"seconds": load_s, "runtime": model.name}
            case "decode":
                answer = {"ms": _decode(model, tokens, asked["slots"], asked["steps"])}
            case "prefill":
                answer = {"tokens_per_s": _prefill(model, tokens)}
            case "memory":
                answer = {"mib": (process.memory_info().rss - before) / MIB}
            case "quality":
                told = predict("text", asked["text"], model, reference, lambda *_: None)
                answer = {
                    "divergence": told.divergence and told.divergence.value,
                    "agreement": told.agreement and told.agreement.value,
                    "tokens": told.tokens,
                }
        print(json.dumps(answer), flush=True)
    return 0


class Generators:
    """One generator of onnxruntime-genai a slot: they cannot be run together."""

    def __init__(self, load: frames.Load) -> None:
        import onnxruntime_genai

        self._library = onnxruntime_genai
        self._model = onnxruntime_genai.Model(load.model.path)
        self.name = f"onnxruntime-genai {onnxruntime_genai.__version__}"
        self._slots: dict[int, Any] = {}

    def decode(self, chunks: Sequence[Chunk]) -> list[Any]:
        """Append the tokens and return the logits of the last one of each."""
        rows = []
        for chunk in chunks:
            if chunk.slot not in self._slots:
                parameters = self._library.GeneratorParams(self._model)
                parameters.set_search_options(max_length=CONTEXT_TOKENS, do_sample=False)
                self._slots[chunk.slot] = self._library.Generator(self._model, parameters)
            generator = self._slots[chunk.slot]
            generator.append_tokens(np.array(chunk.tokens, np.int32))
            if chunk.wants_row:
                rows.append(generator.get_logits())
        return rows

    def clear(self, slot: int) -> None:
        """Forget a conversation; the generator stays."""
        self._slots[slot].rewind_to(0)


def _file(name: str) -> ModelFile:
    form = ModelFormat.ONNX_GENERATION if Path(name).is_dir() else ModelFormat.GGUF
    return ModelFile(name=Path(name).stem, path=name, format=form, sha256="", context_tokens=8192)


def _loaded(load_model: Any, name: str) -> Runtime:
    runtime: Runtime = load_model(
        frames.Load(
            model=_file(name),
            context_tokens=CONTEXT_TOKENS,
            parallel=SLOTS,
            waiting_line=0,
            threads=0,
            confine=False,
        )
    )
    return runtime


def _fill(model: Any, slot: int, tokens: list[int]) -> None:
    for at in range(0, PROMPT_TOKENS, PIECE_TOKENS):
        model.decode([Chunk(slot, at, tokens[at : at + PIECE_TOKENS], at + PIECE_TOKENS >= PROMPT_TOKENS)])


def _decode(model: Any, tokens: list[int], slots: int, steps: int) -> float:
    """Return the mean milliseconds of a step of one token for each slot, behind a prompt."""
    for slot in range(slots):
        _fill(model, slot, tokens)
    began = 0.0
    for step in range(-1, steps):  # the first is not counted
        at = PROMPT_TOKENS + 1 + step
        model.decode([Chunk(slot, at, [tokens[at]], wants_row=True) for slot in range(slots)])
        began = began or time.perf_counter()
    seconds = time.perf_counter() - began
    for slot in range(slots):
        model.clear(slot)
    return seconds / steps * 1000


def _prefill(model: Any, tokens: list[int]) -> float:
    began = time.perf_counter()
    _fill(model, 0, tokens)
    seconds = time.perf_counter() - began
    model.clear(0)
    return PROMPT_TOKENS / seconds


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
