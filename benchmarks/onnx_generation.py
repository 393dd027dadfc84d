"""Generative ONNX models beside GGUF files of the same weights, both through the runtimes of the engine.

The weights are those of the embedded model, Q4_1 taken for exact: the ONNX models are made of it
as a checkpoint, the GGUF files by quantizing it anew. The reference of quality is its F32 form.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, Self

import llama_cpp.llama_cpp as native

from agent.llama_library import load_backends
from benchmarks.contestants import model_file
from benchmarks.encoder_cells import Part
from benchmarks.intervals import ratio
from benchmarks.table import Row

ROOT = Path(__file__).resolve().parents[1]
STEPS, QUICK_STEPS = 24, 10
QUALITY_CHARS = 5000
FTYPES = {
    "F32": native.LLAMA_FTYPE_ALL_F32,
    "Q4_0": native.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q4_K_M": native.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "Q8_0": native.LLAMA_FTYPE_MOSTLY_Q8_0,
}
BESIDE = {"int4": ("Q4_0", "Q4_K_M"), "int8": ("Q8_0",)}
GENAI = "onnxruntime-genai's generators"  # on the files of int4


class Figure(NamedTuple):
    """What is measured in each round: the question, the key of the answer, and how it reads."""

    name: str
    question: dict[str, Any]
    key: str
    less: bool  # is better


def figures(steps: int) -> tuple[Figure, ...]:
    return (
        Figure("decode, 1 answer: ms a step", {"do": "decode", "slots": 1, "steps": steps}, "ms", True),
        Figure("decode, 4 answers: ms a step", {"do": "decode", "slots": 4, "steps": steps}, "ms", True),
        Figure("prompt of 128 tokens: tokens/s", {"do": "prefill"}, "tokens_per_s", False),
    )


def parts() -> list[Part]:
    return [
        Part("generation", "int4 and int8 beside GGUF files of the same weights: speed, load, memory", speed),
        Part("generation-quality", "the same: how far from F32 (not with --quick)", quality),
    ]


def speed(rounds: int, quick: bool) -> Iterator[Row]:
    """Yield the rows of each ONNX model beside each GGUF file; contestants take turns."""
    beside = {"int4": ("Q4_0",)} if quick else BESIDE | {"int4": (*BESIDE["int4"], GENAI)}
    measured = figures(QUICK_STEPS if quick else STEPS)
    names = list(dict.fromkeys(name for kind, peers in beside.items() for name in (kind, *peers)))
    with contextlib.ExitStack() as open_models:
        models = {name: open_models.enter_context(Model(name)) for name in names}
        found: dict[tuple[str, str], list[float]] = {}
        for number in range(rounds + 1):
            for figure in measured:
                for name, model in models.items():
                    value = model.ask(**figure.question)[figure.key]
                    if number:  # the first warms up
                        found.setdefault((name, figure.name), []).append(value)
        load = {name: model.ask(do="load")["seconds"] for name, model in models.items()}
        memory = {name: model.ask(do="memory")["mib"] for name, model in models.items()}
    for kind, peers in beside.items():
        for peer in peers:
            for figure in measured:
                yield _row(
                    kind, peer, figure.name, found[kind, figure.name], found[peer, figure.name], less=figure.less
                )
            yield _row(kind, peer, "load, file in the page cache: s", [load[kind]], [load[peer]], less=True)
            yield _row(kind, peer, "memory after that: MiB", [memory[kind]], [memory[peer]], less=True)


def quality(rounds: int, quick: bool) -> Iterator[Row]:
    """Yield how far the predictions of each are from those of F32."""
    del rounds
    if quick:
        return
    text = (
        resources.files("agent.evaluation").joinpath("measuring_text.txt").read_text(encoding="utf-8")[:QUALITY_CHARS]
    )
    told = {}
    for name in dict.fromkeys(name for kind, peers in BESIDE.items() for name in (kind, *peers)):
        with Model(name, reference="F32") as model:
            told[name] = model.ask(do="quality", text=text)
    for kind, peers in BESIDE.items():
        for peer in peers:
            for key, name, less in (
                ("divergence", "KL to F32, nats a token", True),
                ("agreement", "same likeliest token as F32", False),
            ):
                yield _row(kind, peer, name, [told[kind][key]], [told[peer][key]], less=less)


def _row(kind: str, peer: str, name: str, ours: list[float], theirs: list[float], *, less: bool) -> Row:
    found = ratio(theirs, ours) if less else ratio(ours, theirs)
    middle = sorted(ours)[len(ours) // 2], sorted(theirs)[len(theirs) // 2]
    return Row(
        f"ONNX {kind}, {name}",
        *middle,
        peer if peer == GENAI else f"llama.cpp {peer}",
        found.value,
        (found.low, found.high),
        len(ours),
        None,
        None,
    )


class Model:
    """A model in a child process, from ``__enter__`` to ``__exit__``."""

    def __init__(self, name: str, reference: str = "") -> None:
        files = ["--genai", str(_path("int4"))] if name == GENAI else [str(_path(name))]
        self._command = [sys.executable, str(ROOT / "benchmarks" / "generation_peer.py"), *files]
        self._command += [str(_path(reference))] if reference else []

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ask(do="load")
        return self

    def __exit__(self, *error: object) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()

    def ask(self, **question: Any) -> dict[str, Any]:
        """Return the answer. Raises RuntimeError when the child has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(self._command)} ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _path(name: str) -> Path:
    """Return the files of a contestant. Raises RuntimeError for an ONNX model that nobody has made."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "outrider"
    if name in BESIDE:
        folder = cache / "onnx" / f"smollm2-{name}"
        if not (folder / "genai_config.json").is_file():
            raise RuntimeError(f"{folder} is missing: docs/onnx.md says how it is made")
        return folder
    made = cache / "gguf" / f"smollm2-{name}-{native.llama_version().decode()}.gguf"
    if not made.is_file():
        made.parent.mkdir(parents=True, exist_ok=True)
        _quantize(Path(model_file()), made, FTYPES[name])
    return made


def _quantize(source: Path, made: Path, ftype: int) -> None:
    load_backends()
    parameters = native.llama_model_quantize_default_params()
    parameters.ftype = ftype
    parameters.allow_requantize = True  # the source counts as exact, for both sides
    partial = made.with_suffix(".partial")
    if native.llama_model_quantize(str(source).encode(), str(partial).encode(), ctypes.byref(parameters)):
        raise RuntimeError(f"llama.cpp cannot make {made.name} of {source.name}")
    partial.replace(made)
