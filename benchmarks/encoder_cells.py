"""The encoder beside sentence-transformers on torch, and the daemon's /v1/embeddings beside a bare loop."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import encoder_gguf
import numpy as np
import onnxruntime
import peer_environment
from tokenizers import Tokenizer

from agent.batch import open_encoder
from agent.engine.onnx_encoder_runtime import OnnxEncoderRuntime
from agent.models.manifest import load_manifest
from agent.models.packaged import packaged_files
from agent.models.store import open_store
from benchmarks.contestants import Contestant, LlamaServer, Outrider
from benchmarks.encoder_load import MODEL, text
from benchmarks.intervals import percentile, ratio
from benchmarks.table import Row

ROOT = Path(__file__).resolve().parents[1]
TORCH = "sentence-transformers on torch"
LLAMA = "llama-server, Q8_0"
BARE = "a bare onnxruntime loop"
LOAD_S, QUICK_LOAD_S = 4, 1
SHORT_REQUESTS_S, QUICK_SHORT_REQUESTS_S = 3, 2
P99_MS = 20.0
LEAST_COSINE = 0.98
TORCH_RATIO = 2.0
KEPT_OF_BARE = {1: 0.70, 8: 0.85}  # with so many texts a request, at eight clients


class Part(NamedTuple):
    """A piece of the benchmark."""

    name: str
    what: str
    run: Callable[[int, bool], Iterator[Row]]  # rounds, whether in a hurry


def parts() -> list[Part]:
    return [
        Part("encoder-torch", "the encoder beside sentence-transformers on torch", beside_torch),
        Part("encoder-llama", "the daemon's /v1/embeddings beside llama-server's", beside_llama),
        Part("embeddings-load", "the daemon's /v1/embeddings beside a bare loop", under_load),
    ]


def beside_torch(rounds: int, quick: bool) -> Iterator[Row]:
    """Yield the rows at batch 1 and 32, and how far the vectors are from those of fp32."""
    with tempfile.TemporaryDirectory() as folder, _torch() as torch, open_encoder(_encoder(Path(folder))) as encoder:
        for size in (1, 32):
            texts = _texts(32 if quick or size > 1 else 64)
            ours: list[float] = []
            theirs: list[float] = []
            for number in range(rounds + 1):
                seconds, vectors = _timed(encoder.runtime, texts, size)
                answer = torch({"texts": texts, "batch": size, "repeat": 1})
                if number:  # the first of each side warms up
                    ours.append(seconds / len(texts) * 1000)
                    theirs.append(answer["seconds"][0] / len(texts) * 1000)
            wanted = TORCH_RATIO if size == 1 else None
            yield _row(f"embed, batch {size}: ms per text", ours, theirs, TORCH, wanted=wanted, less=True)
        exact = np.asarray(answer["vectors"])
        cosines = (exact * vectors).sum(axis=1)
        least = float(cosines.min())
        yield Row(
            "embed: least cosine to fp32", least, 1.0, TORCH, least, (least, least), len(texts),
            f">= {LEAST_COSINE}", least >= LEAST_COSINE,
        )  # fmt: skip


def beside_llama(rounds: int, quick: bool) -> Iterator[Row]:
    """Yield the rows at 1 and 32 texts a request; none in a hurry."""
    if quick:
        return
    options = ["--model", str(encoder_gguf.find()), "--embeddings", "--pooling", "mean"]
    options += ["--parallel", "32", "--ctx-size", "16384", "--batch-size", "2048", "--ubatch-size", "2048"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with (
            contextlib.closing(Outrider(_made(folder / "daemon"))) as daemon,
            contextlib.closing(LlamaServer(_made(folder / "llama"), *options)) as llama,
        ):
            for texts in (1, 32):
                ours: list[float] = []
                theirs: list[float] = []
                for number in range(rounds + 1):
                    figures = [_load(side, 1, texts, LOAD_S)["texts_per_s"] for side in (daemon, llama)]
                    if number:  # the first of each side warms up
                        ours.append(figures[0])
                        theirs.append(figures[1])
                yield _row(
                    f"/v1/embeddings, 1 client, {texts} texts a request: texts/s", ours, theirs, LLAMA, wanted=None
                )


def under_load(rounds: int, quick: bool) -> Iterator[Row]:
    """Yield the rows at 1, 8 and 32 clients, with one and with eight texts a request."""
    span, short = (QUICK_LOAD_S, QUICK_SHORT_REQUESTS_S) if quick else (LOAD_S, SHORT_REQUESTS_S)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        loop = BareLoop(_encoder(folder / "own"))
        with contextlib.closing(Outrider(_made(folder / "daemon"))) as daemon:
            _load(daemon, 1, 1, 1)  # loads the model
            single = [ms for _ in range(1 if quick else rounds) for ms in _load(daemon, 1, 1, short)["ms"]]
            p99 = percentile(single, 0.99)
            yield Row(
                "/v1/embeddings, one short text, idle: p99 ms", p99, P99_MS, "what is wanted", P99_MS / p99,
                (P99_MS / p99, P99_MS / p99), len(single), f"<= {P99_MS:g}", p99 <= P99_MS,
            )  # fmt: skip
            for clients, texts in ((1, 1), (8, 1), (32, 1), (8, 8)):
                if quick and clients != 8:
                    continue
                ours, bare = [], []
                for _ in range(rounds):
                    bare.append(loop.texts_per_s(texts, span))
                    ours.append(_load(daemon, clients, texts, span)["texts_per_s"])
                name = f"/v1/embeddings, {clients} clients, {texts} texts a request: texts/s"
                wanted = KEPT_OF_BARE[texts] if clients == 8 else None
                yield _row(name, ours, bare, BARE, wanted=wanted)


def _row(
    name: str, ours: Sequence[float], peer: Sequence[float], peer_name: str, *, wanted: float | None, less: bool = False
) -> Row:
    found = ratio(peer, ours) if less else ratio(ours, peer)
    middle = sorted(ours)[len(ours) // 2], sorted(peer)[len(peer) // 2]
    told = f"ratio >= {wanted:g}" if wanted else None
    ok = found.value >= wanted if wanted else None
    return Row(name, *middle, peer_name, found.value, (found.low, found.high), len(ours), told, ok)


def _texts(count: int) -> list[str]:
    return [text(f"{number:04}-0", 7 * number) for number in range(count)]


def _timed(runtime: OnnxEncoderRuntime, texts: Sequence[str], size: int) -> tuple[float, Any]:
    began = time.perf_counter()
    rows = [
        runtime.rows([runtime.tokens.read(one) for one in texts[start : start + size]])
        for start in range(0, len(texts), size)
    ]
    return time.perf_counter() - began, np.concatenate(rows)


class BareLoop:
    """What one writes by hand: onnxruntime and tokenizers as they come, one call after the other."""

    def __init__(self, folder: Path) -> None:
        self._session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(256)
        self._tokenizer.enable_padding()

    def texts_per_s(self, texts: int, span: float) -> float:
        """Return how many texts a second it embeds, so many a call, in ``span`` seconds."""
        done = 0
        began = time.perf_counter()
        while time.perf_counter() < began + span:
            self([text("0000-0", done + n) for n in range(texts)])
            done += texts
        return done / (time.perf_counter() - began)

    def __call__(self, texts: Sequence[str]) -> Any:
        read = self._tokenizer.encode_batch(texts)
        ids, mask, types = (
            np.array([getattr(one, name) for one in read], np.int64) for name in ("ids", "attention_mask", "type_ids")
        )
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        (hidden,) = self._session.run(None, feed)
        pooled = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)


def _load(daemon: Contestant, clients: int, texts: int, span: int) -> dict[str, Any]:
    address = daemon.address
    token = address.headers.get("authorization", "Bearer none").partition(" ")[2]
    url = f"http://{address.host}:{address.port}"
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "encoder_load.py"),
        url,
        token,
        *map(str, (clients, texts, span)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the clients of the daemon failed: {done.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"ms": [one * 1000 for one in found["seconds"]]}


def _encoder(folder: Path) -> Path:
    """Return a folder with the files of the embedded encoder."""
    return Path(open_store(folder).resolve(MODEL).path)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@contextlib.contextmanager
def _torch() -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """Yield what asks sentence-transformers on the F32 weights. Raises CannotBuildError where it is not installed."""
    python = peer_environment.find("torch")
    files = packaged_files(load_manifest().get("minilm-l6-v2"))
    if files is None:
        raise RuntimeError("the F32 weights of the encoder are missing: make test installs them")
    folder = files["model.safetensors"][0].parent
    command = [str(python), str(ROOT / "benchmarks" / "encoder_peer.py"), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        given, output = process.stdin, process.stdout

        def ask(question: dict[str, Any]) -> dict[str, Any]:
            given.write(json.dumps(question) + "\n")
            given.flush()
            found: dict[str, Any] = json.loads(output.readline() or '{"failed": true}')
            if "seconds" not in found:
                raise RuntimeError("sentence-transformers ended; its words are above")
            return found

        if not output.readline():
            raise RuntimeError("sentence-transformers did not start; its words are above")
        yield ask
        process.stdin.close()
