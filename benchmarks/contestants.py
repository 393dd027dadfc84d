"""The servers that are compared: each a child process of its own, with the same file and room.

All get 16 places of 1,024 tokens each and otherwise what they do by themselves: threads,
batch sizes, flash attention and caches are their own defaults unless a name says otherwise.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import llama_peer
import psutil

from agent.models.manifest import load_manifest
from agent.models.packaged import packaged_files
from benchmarks import http_load
from benchmarks.http_load import Address
from benchmarks.prompts import of_words

ROOT = Path(__file__).resolve().parents[1]
MODEL = "smollm2-135m-instruct"
SYSTEM = "You are a helpful assistant."  # given to all, so that no template adds one of its own
SHARED_SYSTEM = of_words(400, "shared prefix")
PLACES = 16
PLACE_TOKENS = 1024
START_PATIENCE_S = 60.0
STOP_PATIENCE_S = 20.0
END_TOKENS = (0, 2)  # <|endoftext|>, <|im_end|>
MIB = 1 << 20


class Contestant:
    """A server that runs from ``__init__`` to ``close``."""

    def __init__(self, folder: Path, command: list[str], ready: Callable[[], Address | None]) -> None:
        """Start it and wait until ``ready`` gives its address. Raises RuntimeError with its last words."""
        self.folder = folder
        log = folder / "log"
        environ = {name: value for name, value in os.environ.items() if not name.startswith("OUTRIDER_")}
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environ
            )
        try:
            self.address = self._await(ready, log)
        except BaseException:
            self.close()
            raise

    def _await(self, ready: Callable[[], Address | None], log: Path) -> Address:
        until = time.monotonic() + START_PATIENCE_S
        while time.monotonic() < until:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError, ValueError, http_load.Refused):
                if address := ready():
                    return address
            time.sleep(0.01)
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        raise RuntimeError("\n".join([*tail, f"{type(self).__name__} did not start; its log is above"]))

    def chat_body(self, prompt: str, tokens: int, *, system: str = SYSTEM, stream: bool = True) -> dict[str, Any]:
        """Return a greedy chat of exactly ``tokens`` tokens."""
        messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
        return self.conversation(messages, tokens, stream=stream)

    def conversation(self, messages: list[dict[str, str]], tokens: int, *, stream: bool = True) -> dict[str, Any]:
        """Return the same with all messages given."""
        body: dict[str, Any] = {
            "model": MODEL,
            "messages": messages,
            "max_tokens": tokens,
            "temperature": 0,
            **self.endless(),
        }
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body

    def endless(self) -> dict[str, Any]:
        """Return the parameters by which an answer does not end by itself."""
        return {"ignore_eos": True}

    def processes(self) -> list[psutil.Process]:
        """Return the server and its children."""
        head = psutil.Process(self._process.pid)
        return [head, *head.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """Return the processor time that all its processes have used so far."""
        times = [process.cpu_times() for process in self.processes()]
        return float(sum(spent.user + spent.system for spent in times))

    def resident_mib(self) -> float:
        """Return the resident memory of all its processes, the mapped model file included."""
        return float(sum(process.memory_info().rss for process in self.processes())) / MIB

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(STOP_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Outrider(Contestant):
    """Our daemon with its worker, as a user runs it: bearer token, journal on disk, confidence on."""

    def __init__(self, folder: Path, extra: str = "") -> None:
        """``extra``: more lines for the configuration's [engine] table, or tables after it."""
        data = folder / "data"
        config = folder / "outrider.toml"
        lines = [f"data_dir = {json.dumps(str(data))}", "[server]", "port = 0", "[engine]"]
        lines += [f'model = "{MODEL}"', f"parallel = {PLACES}", f"context_tokens = {PLACE_TOKENS}", extra]
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")

        def ready() -> Address | None:
            found = json.loads((data / "daemon.json").read_text(encoding="utf-8"))
            if not psutil.pid_exists(found["pid"]):  # of an earlier start
                return None
            host, _, port = found["url"].removeprefix("http://").partition(":")
            token = (data / "token").read_text(encoding="utf-8").strip()
            address = Address(host, int(port), {"authorization": f"Bearer {token}"})
            return address if http_load.get(address, "/readyz")["ready"] else None

        super().__init__(folder, [sys.executable, "-m", "agent", "--config", str(config), "serve"], ready)

    def conversation(self, messages: list[dict[str, str]], tokens: int, *, stream: bool = True) -> dict[str, Any]:
        """Return a chat that is answered here whatever its confidence."""
        own = {"outrider": {"route_mode": "local_only", "on_low_confidence": "draft"}}
        return super().conversation(messages, tokens, stream=stream) | own


class LlamaServer(Contestant):
    """Upstream's HTTP server."""

    def __init__(self, folder: Path, *options: str, file: Path | None = None) -> None:
        """``options`` come after the common ones of the command line; ``file`` instead of the common one."""
        address = Address("127.0.0.1", _free_port(), {})
        command = [str(llama_peer.find() / llama_peer.SERVER), "--model", str(file or model_file())]
        command += ["--host", address.host, "--port", str(address.port)]
        command += ["--parallel", str(PLACES), "--ctx-size", str(PLACES * PLACE_TOKENS), *options]
        super().__init__(folder, command, lambda: address if http_load.get(address, "/health") else None)


class PythonServer(Contestant):
    """llama-cpp-python's own server: one request after the other."""

    def __init__(self, folder: Path) -> None:
        """Start it with its defaults but for the context, and a second client that waits."""
        address = Address("127.0.0.1", _free_port(), {})
        command = [str(llama_peer.find() / llama_peer.PYTHON), "-m", "llama_cpp.server", "--model", str(model_file())]
        command += ["--host", address.host, "--port", str(address.port), "--n_ctx", str(PLACE_TOKENS)]
        command += ["--interrupt_requests", "false"]  # by default a second request ends the first one's stream
        super().__init__(folder, command, lambda: address if http_load.get(address, "/v1/models") else None)

    def endless(self) -> dict[str, Any]:
        """Return a bias: it has no parameter for that."""
        return {"logit_bias": {str(token): -100 for token in END_TOKENS}}


class Field:
    """All contestants of a run. Each is started when it is first needed."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="outrider-benchmark-", ignore_cleanup_errors=True)
        self._running: dict[str, Contestant] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in tuple(self._running):
            self.close(name)
        self._folder.cleanup()

    def __getitem__(self, name: str) -> Contestant:
        """Return the contestant of this name (see ``KINDS``), started."""
        if name not in self._running:
            self._running[name] = KINDS[name](self.folder(name))
        return self._running[name]

    def folder(self, name: str) -> Path:
        """Return the folder of a contestant; it outlives a restart."""
        folder = Path(self._folder.name) / name
        folder.mkdir(exist_ok=True)
        return folder

    def close(self, name: str) -> None:
        """End one of them. It starts again when it is next needed."""
        if found := self._running.pop(name, None):
            found.close()


def model_file() -> Path:
    """Return the GGUF file of the embedded package: what all contestants read."""
    files = packaged_files(load_manifest().get(MODEL))
    if files is None:
        sys.exit(f"the package of {MODEL} is not installed: run make demo first")
    ((path,),) = files.values()
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _given_q8_0(folder: Path) -> Contestant:
    """Start llama-server with the same weights in the form in which ours holds them."""
    import llama_cpp.llama_cpp as native

    from agent.llama_library import load_backends

    load_backends()
    made = folder / "q8_0.gguf"
    wish = native.llama_model_quantize_default_params()
    wish.ftype, wish.allow_requantize = native.LLAMA_FTYPE_MOSTLY_Q8_0, True
    if native.llama_model_quantize(str(model_file()).encode(), str(made).encode(), wish) != 0:
        raise RuntimeError("llama.cpp cannot requantize the model")
    return LlamaServer(folder, file=made)


def _with_lookup(name: str, folder: Path) -> Contestant:
    return LlamaServer(folder, "--spec-type", name.rpartition(" ")[2])


OURS, SERVER, ONE_THREAD, PYTHON = "outrider", "llama-server", "llama-server -t 1", "llama_cpp.server"
NAMED, SLOTS = "outrider with a named prefix", "llama-server --slot-save-path"
UNGUESSED = "outrider without drafting"
STORED, REQUANTIZED = "outrider with weights as stored", "llama-server, given a Q8_0 file"
LOOKUPS = tuple(f"llama-server --spec-type {kind}" for kind in ("ngram-simple", "ngram-mod"))
_PREFIX = f'[[prefixes]]\nname = "shared"\nsystem = {json.dumps(SHARED_SYSTEM)}'
KINDS: dict[str, Callable[[Path], Contestant]] = {
    OURS: Outrider,
    NAMED: lambda folder: Outrider(folder, _PREFIX),
    UNGUESSED: lambda folder: Outrider(folder, 'drafting = "off"'),
    STORED: lambda folder: Outrider(folder, 'weights = "stored"'),
    SERVER: LlamaServer,
    REQUANTIZED: _given_q8_0,
    ONE_THREAD: lambda folder: LlamaServer(folder, "--threads", "1"),
    SLOTS: lambda folder: LlamaServer(folder, "--slot-save-path", f"{folder}/"),
    **{name: functools.partial(_with_lookup, name) for name in LOOKUPS},
    PYTHON: PythonServer,
}
