"""The real API over real HTTP: real pipeline, storage and dispatcher; only the engine is scripted.

    with served(tmp_path) as api:
        api.client().post("/v1/chat/completions", json=chat("hello"))

The last user message decides what the engine does: "unsure", "nosignal", "crash", "midcrash",
"busy", "overflow", "timeout", "ponder" (thinks first), "gate" (waits until ``api.engine.gate`` is opened), "hang",
else it echoes confidently.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
import socket
import ssl
import threading
import time
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx2
import msgspec

from agent.api.app import ApiDeps, ApiServer, create_app, uvicorn_config
from agent.api.auth import CallerKey, Tokens
from agent.background import Background
from agent.confidence.estimators import estimator
from agent.confidence.fields import field_judge
from agent.engine.places import Places
from agent.engine.prefix_keeper import PrefixStatus
from agent.engine.supervisor import WorkerState, WorkerStatus
from agent.engine.worker_status import ModelTraits
from agent.escalation.budget import Budget
from agent.escalation.dispatcher import Dispatcher
from agent.label_likeness import ENCODER
from agent.models.aliases import Aliases
from agent.pipeline import Pipeline
from agent.policy import PresentPolicy, routing_policy
from agent.rules import Rulebook
from agent.scores import Scores, Vectors
from agent.settings import ConnectivitySettings, Settings, TargetSettings
from agent.storage import open_storage
from agent.task_book import TaskBook
from agent.task_folder import TaskFolder
from agent.task_memory import TaskMemory
from agent.types import Delta, EgressPolicy, Failure, FailureKind, Generation, Token, TopToken

MODEL = "small"
USER, ADMIN, DESK = (f"{name}-token-" + "x" * 32 for name in ("user", "admin", "desk"))
TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # plain HTTP: spares each client the reading of certificates
FAILURES = {
    "crash": FailureKind.CRASH,
    "busy": FailureKind.BUSY,
    "overflow": FailureKind.CONTEXT_OVERFLOW,
    "timeout": FailureKind.TIMEOUT,
    "quarantine": FailureKind.QUARANTINED,
}


TRAITS = ModelTraits(parameters=134_515_008, quantization="Q4_1", fills_gaps=False, thinks=False)


class Card(msgspec.Struct):
    name: str
    sha256: str = "d" * 64
    context_tokens: int = 8192
    licence: str = "Apache-2.0"
    bytes: int = 98_362_432
    state: str = "installed"
    parent: str | None = None
    tasks: tuple[str, ...] = ("chat", "classify")


CARDS = (Card(MODEL), Card("vendor/other"), Card("absent", state="missing"))


class ScriptedEngine:
    def __init__(self) -> None:
        self.cancelled = threading.Semaphore(0)
        self.started = threading.Semaphore(0)
        self.gate = threading.Event()
        self.asked = []
        self.state = WorkerState.READY
        self.embeds, self.encoder_digest = ENCODER, "e" * 64
        self.embedded, self.gives_states = [], False

    def status(self):
        found = {MODEL: WorkerStatus(state=self.state, model_digest="d" * 64, context_tokens=2048, traits=TRAITS)}
        if self.embedded:
            found[self.embeds] = WorkerStatus(state=self.state, model_digest=self.encoder_digest)
        return found

    def encoder(self, name):
        return None

    async def stop(self, grace_s):
        pass

    def prefixes(self):
        return [PrefixStatus(name="cities", model=MODEL), PrefixStatus(name="brief", model=MODEL)]

    async def score(self, request, labels, *, messages=None, hidden=False):
        """Favour the label that the text contains: by much, or hardly when it says "unsure"."""
        self.asked.append(request)
        said = (messages or request.messages)[-1].content
        for word, kind in FAILURES.items():
            if word in said.split():
                return Scores(model=MODEL, failure=Failure(kind, f"scripted {word}"))
        step = 0.1 if "unsure" in said else 6.0
        figures = tuple(-8.0 - 0.3 * len(label) + (step if label in said else 0.0) for label in labels)
        state = array("f", hashed_words(said)).tobytes() if hidden and self.gives_states else b""
        return Scores(
            logprobs=figures,
            token_counts=(2,) * len(labels),
            mass=min(1.0, sum(map(math.exp, figures))),
            best=max(range(len(figures)), key=figures.__getitem__, default=None),
            hidden=state,
            prompt_tokens=7,
            model=MODEL,
            model_digest="d" * 64,
        )

    async def embed(self, model, texts, *, deadline_at_ms=None):
        """Count words by their hash: texts with the same words are near each other."""
        self.embedded += texts
        if model != self.embeds:
            return Vectors(model=model, failure=Failure(FailureKind.REJECTED, f"model {model} is not installed"))
        return Vectors(
            vectors=tuple(map(hashed_words, texts)), model=model, model_digest=self.encoder_digest, runtime="scripted"
        )

    async def generate(self, request):
        self.asked.append(request)
        said = request.messages[-1].content
        logprob = math.log(0.1 if "unsure" in said else 0.99)
        tokens = []
        try:
            for word, kind in FAILURES.items():
                if word in said.split():
                    param = "messages" if request.prompt is None else "prompt"
                    yield Generation(model=MODEL, failure=Failure(kind, f"scripted {word}", param))
                    return
            thoughts = ("Hm, ", "well.") if "ponder" in said else ()
            for thought in thoughts:
                yield Delta("", thought=thought)
            for index, part in enumerate(["echo:", *(f" {word}" for word in said.split())]):
                alternatives = tuple(
                    TopToken(n, b"x", logprob if not n else -math.inf) for n in range(request.sampling.top_logprobs)
                )
                token = Token(index, part.encode(), logprob, -5.0, 0.1, alternatives)
                tokens.append(token)
                yield Delta(part, (token,))
                if index == 0:
                    self.started.release()
                    while ("hang" in said) or ("gate" in said and not self.gate.is_set()):
                        await asyncio.sleep(0.005)
                if index == 1 and "midcrash" in said:
                    yield Generation(text=part, tokens=tuple(tokens), failure=Failure(FailureKind.CRASH, "scripted"))
                    return
                if index == 1 and "explode" in said:
                    raise RuntimeError(f"a bug that quotes {said}")
            yield Generation(
                text="echo: " + " ".join(said.split()),
                finish_reason="stop",
                tokens=() if "nosignal" in said else tuple(tokens),
                prompt_tokens=7,
                cached_tokens=3,
                output_tokens=len(tokens),
                thoughts="".join(thoughts),
                thought_tokens=5 if thoughts else 0,
                model=MODEL,
                model_digest="d" * 64,
                end=Token(9, b"", -0.5, -1.0, 0.1) if "ending" in said and request.sampling.logprobs else None,
                prompt_logprobs=_echo(request) if request.echo else (),
            )
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled.release()
            raise


def hashed_words(text):
    counts = [0.0] * 512
    for word in text.lower().split():
        counts[zlib.crc32(word.encode()) % 512] += 1.0
    length = math.sqrt(math.fsum(one * one for one in counts)) or 1.0
    return tuple(one / length for one in counts)


def _echo(request):
    text = request.prompt if isinstance(request.prompt, str) else bytes(request.prompt).decode()
    parts = [part if n == 0 else " " + part for n, part in enumerate(text.split(" "))]
    top = request.sampling.top_logprobs
    return tuple(
        Token(n, part.encode(), -float(n), -5.0, 0.1, (TopToken(99, b" likelier", -0.25),)[:top])
        for n, part in enumerate(parts)
    )


class Served:
    """A running server and ways to talk to it from the test's thread."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.engine = engine
        self.targets: tuple[TargetSettings, ...] = ()
        self.skew_ms = 0

    def client(self, token: str | None = USER, **options) -> httpx2.Client:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False, verify=TLS, **options)

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def chat(self, said: str, *, headers=None, token: str = USER, **fields) -> httpx2.Response:
        with self.client(token) as client:
            return client.post("/v1/chat/completions", json=chat(said, **fields), headers=headers)

    def classify(self, said: str, labels, *, headers=None, **fields) -> httpx2.Response:
        with self.client() as client:
            body = {"model": MODEL, "labels": labels, "input": said, **fields}
            return client.post("/v1/classify", json=body, headers=headers)

    def get(self, path: str, token: str = USER) -> httpx2.Response:
        with self.client(token) as client:
            return client.get(path)

    def post(self, path: str, body=None, token: str = ADMIN) -> httpx2.Response:
        with self.client(token) as client:
            return client.post(path, json=body) if body is not None else client.post(path)

    def settled(self, request_id: str) -> dict:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            record = self.get(f"/v1/requests/{request_id}").json()
            if record["state"] not in {"running", "queued"}:
                return record
            time.sleep(0.01)
        raise AssertionError(record)

    def raw(self, data: bytes) -> bytes:
        """Send bytes as they are; return all that comes until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(data)
            found = b""
            with contextlib.suppress(ConnectionResetError):  # the server closed with some of it unread
                while piece := connection.recv(65536):
                    found += piece
            return found


def chat(said: str, **fields) -> dict:
    return {"model": MODEL, "messages": [{"role": "user", "content": said}], **fields}


def target_at(base_url: str, egress: EgressPolicy = EgressPolicy.ALLOW) -> TargetSettings:
    return TargetSettings(name="main", base_url=base_url, model="big", egress=egress)


def events_of(response):
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith(("data: ", ":")) for line in lines) and lines[-1] == "data: [DONE]"  # noqa: PT018
    return [json.loads(line[6:]) for line in lines[:-1] if line.startswith("data: ")]


@contextlib.contextmanager
def streaming(api, body, headers=None):
    with api.client() as client, client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
        yield response


@contextlib.contextmanager
def served(
    folder: Path,
    *,
    targets: tuple[TargetSettings, ...] = (),
    heartbeat_s: float = 10.0,
    engine=None,
    models=CARDS,
    **sections,
) -> Iterator[Served]:
    """Serve in a thread of its own until the block ends. ``sections`` replace those of Settings."""
    api = Served(engine or ScriptedEngine())
    api.models = models
    api.targets = targets
    settings = Settings(
        data_dir=str(folder),
        targets=targets,
        connectivity=ConnectivitySettings(probe_cap_s=1.0),
        **{"engine": msgspec.structs.replace(Settings().engine, model=MODEL), **sections},
    )
    ready, failed = threading.Event(), []

    def run() -> None:
        try:
            asyncio.run(_serve(api, settings, heartbeat_s, ready))
        except BaseException as error:
            failed.append(error)
            ready.set()
            raise

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(30)
    if failed:
        raise failed[0]
    try:
        yield api
    finally:
        api.server.should_exit = True
        assert thread.join(30) or not thread.is_alive()


async def _serve(api: Served, settings: Settings, heartbeat_s: float, ready: threading.Event) -> None:
    def now_ms() -> int:
        return time.time_ns() // 1_000_000 + api.skew_ms

    storage = await open_storage(
        settings.data_path, settings.queue, settings.retention, now_ms=now_ms(), uptime=now_ms, files=settings.files
    )
    dispatcher = Dispatcher(
        storage,
        settings.targets,
        settings.connectivity,
        settings.queue,
        settings.redaction,
        now_ms=now_ms,
        random=random.Random(1),
        on_battery=lambda: False,
        budget=Budget(settings.targets, settings.prices, settings.budgets),
        told_now=PresentPolicy(folder := TaskFolder(settings.data_path.parent / "tasks"), settings.keys).told,
    )

    async def reload() -> SimpleNamespace:
        await dispatcher.replace_targets(api.targets, settings.redaction)
        return SimpleNamespace(targets=api.targets, egress=settings.egress)

    api.tasks = TaskMemory(TaskBook(folder), storage.tasks, now_ms)
    storage.outbox.on_feedback = api.tasks.on_feedback
    await api.tasks.load()
    rules = Rulebook(settings.routing.rules)
    pipeline = Pipeline(
        Places(api.engine, settings.engine.parallel, now_ms),
        storage.journal,
        estimator("lowest_tenth"),
        lambda: routing_policy(msgspec.structs.replace(settings, targets=tuple(api.targets)), rules),
        now_ms,
        dispatcher.wake,
        field_judge("lowest_tenth"),
        api.tasks.book,
        settings.moderation,
    )
    app = create_app(
        ApiDeps(
            pipeline=pipeline,
            background=(background := Background(pipeline, storage.journal)),
            storage=storage,
            engine=api.engine,
            prefixes=storage.prefix_store(settings.engine.prefix_disk_bytes),
            dispatcher=dispatcher,
            settings=settings,
            targets=lambda: api.targets,
            models=lambda: api.models,
            model=lambda name: next((card for card in api.models if card.name == name), None),
            redaction=lambda: settings.redaction,
            aliases=Aliases(settings.data_path / "models", MODEL),
            tasks=api.tasks,
            tokens=Tokens(USER, ADMIN, (CallerKey("desk", DESK, EgressPolicy.NEVER),)),
            now_ms=now_ms,
            version="0",
            reload_targets=reload,
            heartbeat_s=heartbeat_s,
        )
    )
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named: else Nagle waits
    listener.bind(("127.0.0.1", 0))
    api.storage, api.loop, api.port = storage, asyncio.get_running_loop(), listener.getsockname()[1]
    api.url = f"http://127.0.0.1:{api.port}"
    api.server = ApiServer(uvicorn_config(app, settings.server), pipeline.holds.end)
    for part in (dispatcher, background, app.state.batches):
        await part.start()
    serving = asyncio.create_task(api.server.serve(sockets=[listener]))
    try:
        while not api.server.started:
            await asyncio.sleep(0.005)
        ready.set()
        await serving
    finally:
        for part in (app.state.batches, background, dispatcher):
            await part.stop()
        await api.tasks.save()
        await api.engine.stop(0)
        await storage.close()
        listener.close()
