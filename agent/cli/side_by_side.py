"""The measurement behind ``outrider bench``: interleaved rounds, medians, one ratio.

Both sides use a worker of their own with the same settings and the same verified file. Only
one of them works at a time, the order changes with each round, and prompts differ between
rounds so that nothing is answered from a cache of the other side.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil

from agent import device, executable
from agent.cli.child_daemon import last_line, running, until_healthy
from agent.cli.client import DaemonClient
from agent.engine.supervisor import EnginePool
from agent.engine.worker_status import ThreadChoice
from agent.errors import DaemonUnreachable, EngineFailed
from agent.identifiers import uuid7
from agent.models.store import open_store
from agent.settings import EngineSettings, Settings
from agent.types import Delta, Generation, InferenceRequest, Message, Sampling

START_PATIENCE_S = 120.0
ANSWER_PATIENCE_S = 300.0
WANTED_ROUNDS = 3  # for which answers are shortened
BUSY_SHARE = 0.3  # of the cores taken by others
FEWEST_TOKENS = 8
WARM_UP_TOKENS = 8
STREAMS_AT_ONCE = 4
LEAST_RATIO = 0.9  # streaming through the daemon costs under 10 %
MOST_DAEMON_MIB = 60.0
LONGEST_START_S = 2.0
MIB = 1 << 20


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to run. ``budget_s`` is kept on a slow or busy machine by shorter answers, then by fewer rounds."""

    model: str
    tokens: int
    rounds: int
    budget_s: float


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the result. Without a peer there is no ratio; without a wish ``ok`` is None."""

    name: str
    ours: float
    peer: float | None = None
    ratio: float | None = None
    wanted: str | None = None
    ok: bool | None = None


class Timing(msgspec.Struct, frozen=True):
    """One answer."""

    tokens: int
    first_token_s: float
    total_s: float


class Sides(msgspec.Struct, frozen=True):
    """The timings of both sides, in the order of the rounds."""

    ours: list[Timing]
    peer: list[Timing]


def measure(engine: EngineSettings, plan: Plan, tell: Callable[[str], None]) -> list[Row]:
    """Run the plan and return the rows. Raises OutriderError when a side does not start."""
    seen = device.profile()
    if seen.load_1min is not None and seen.load_1min > BUSY_SHARE * seen.usable_cores:
        tell(f"other programs use this machine (load {seen.load_1min:.1f}): do not trust the ratios")
    with tempfile.TemporaryDirectory(prefix="outrider-bench-") as folder, contextlib.ExitStack() as stack:
        data_path = Path(folder) / "data"
        tell("starting a daemon of its own")
        ready_s, process = stack.enter_context(_daemon(data_path, engine, plan.model))
        client = stack.enter_context(DaemonClient(Settings(data_dir=str(data_path))))
        tell("starting the same worker without one")
        direct = stack.enter_context(_direct(data_path, engine))
        through = _Through(client)
        at_once = min(STREAMS_AT_ONCE, engine.parallel)
        until = time.monotonic() + plan.budget_s
        plan = _fitted(plan, through, direct, at_once, tell)
        single = Sides([], [])
        crowd = Sides([], [])
        longest_s = 0.0
        for number in range(plan.rounds):
            started = time.monotonic()
            if number and started + longest_s > until:
                tell(f"the time is used up: {number} of {plan.rounds} rounds")
                break
            tell(f"round {number + 1} of {plan.rounds}")
            for sides, streams in ((single, 1), (crowd, at_once)):
                _round(through, direct, plan, f"round {number}", sides, at_once=streams, swap=number % 2 == 1)
            longest_s = max(longest_s, time.monotonic() - started)
        chosen = _told_threads(client, direct, plan.model, tell)
        daemon_mib = psutil.Process(process.pid).memory_info().rss / MIB
    return [
        _compared("tokens per second, one stream", _rates(single.ours), _rates(single.peer)),
        _compared(
            f"tokens per second, {at_once} streams",
            _rates(crowd.ours),
            _rates(crowd.peer),
        ),
        *chosen,
        _informed("first token, ms, one stream", _firsts(single.ours), _firsts(single.peer)),
        Row(
            name="daemon without its worker, MiB resident",
            ours=daemon_mib,
            wanted=f"<= {MOST_DAEMON_MIB:g}",
            ok=daemon_mib <= MOST_DAEMON_MIB,
        ),
        Row(
            name="daemon answers after start, s",
            ours=ready_s,
            wanted=f"<= {LONGEST_START_S:g}",
            ok=ready_s <= LONGEST_START_S,
        ),
    ]


def _told_threads(client: DaemonClient, direct: _Direct, model: str, tell: Callable[[str], None]) -> list[Row]:
    """Return the threads that both sides have chosen last, and tell why."""
    ready = client.get("/readyz")
    told = next((one["threads"] for one in ready["models"] if one["name"] == model), None)
    ours, peer = (msgspec.convert(told, ThreadChoice | None), direct.threads(model))
    if ours is None or peer is None:
        return []
    tell(f"threads of the daemon's worker: {ours.decode} for decoding, {ours.prefill} for prompts; {ours.reason}")
    tell(
        f"threads of the worker driven directly: {peer.decode} for decoding, {peer.prefill} for prompts; {peer.reason}"
    )
    return [
        Row(name="threads for decoding, at the end", ours=ours.decode, peer=peer.decode),
        Row(name="threads for prompts, at the end", ours=ours.prefill, peer=peer.prefill),
    ]


def _fitted(plan: Plan, through: _Through, direct: _Direct, at_once: int, tell: Callable[[str], None]) -> Plan:
    """Warm both sides up, and shorten the answers when the rounds would not fit the budget."""
    warm_up = msgspec.structs.replace(plan, tokens=WARM_UP_TOKENS)
    token_s = 0.0
    for label in ("warm up", "trial"):  # the first one pays for memory and caches, the second one counts
        started = time.monotonic()
        for streams in (1, at_once):
            _round(through, direct, warm_up, label, Sides([], []), at_once=streams)
        token_s = (time.monotonic() - started) / WARM_UP_TOKENS
    affordable = int(plan.budget_s / (WANTED_ROUNDS + 1) / token_s)
    tokens = max(FEWEST_TOKENS, min(plan.tokens, affordable))
    if tokens < plan.tokens:
        tell(f"this machine is slow or busy: answers of {tokens} tokens instead of {plan.tokens}")
    return msgspec.structs.replace(plan, tokens=tokens)


def _round(
    through: _Through, direct: _Direct, plan: Plan, label: str, sides: Sides, *, at_once: int, swap: bool = False
) -> None:
    prompts = [f"Count from 1 to 500, one number after the other. ({label}, {n})" for n in range(at_once)]
    turns: list[tuple[Callable[[list[str], Plan], Timing], list[Timing]]] = [
        (through.answer, sides.ours),
        (direct.answer, sides.peer),
    ]
    for answer, kept in reversed(turns) if swap else turns:
        kept.append(answer(prompts, plan))


def _rates(timings: list[Timing]) -> list[float]:
    return [timing.tokens / timing.total_s for timing in timings]


def _firsts(timings: list[Timing]) -> list[float]:
    return [timing.first_token_s * 1000 for timing in timings]


def _compared(name: str, ours: list[float], peer: list[float]) -> Row:
    row = _informed(name, ours, peer)
    assert row.ratio is not None
    return msgspec.structs.replace(row, wanted=f"ratio >= {LEAST_RATIO:g}", ok=row.ratio >= LEAST_RATIO)


def _informed(name: str, ours: list[float], peer: list[float]) -> Row:
    mine, theirs = statistics.median(ours), statistics.median(peer)
    return Row(name=name, ours=mine, peer=theirs, ratio=mine / theirs)


class _Through:
    """Streams over HTTP, as any client does."""

    def __init__(self, client: DaemonClient) -> None:
        self._client = client

    def answer(self, prompts: list[str], plan: Plan) -> Timing:
        """Ask all prompts at once; return their tokens together and the time until the last is done."""
        results: list[Timing | BaseException] = []

        def one(prompt: str) -> None:
            try:
                results.append(self._stream(prompt, plan))
            except BaseException as error:
                results.append(error)

        started = time.perf_counter()
        threads = [threading.Thread(target=one, args=(prompt,)) for prompt in prompts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return _together(results, time.perf_counter() - started)

    def _stream(self, prompt: str, plan: Plan) -> Timing:
        body = {
            "model": plan.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_completion_tokens": plan.tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "outrider": {"route_mode": "local_only", "on_low_confidence": "draft"},
        }
        started = time.perf_counter()
        first = None
        tokens = 0
        for event in self._client.stream("/v1/chat/completions", body, ANSWER_PATIENCE_S):
            if first is None and event["choices"] and event["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - started
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
        total = time.perf_counter() - started
        return Timing(tokens, first or total, total)


class _Direct:
    """The worker, driven by the same supervisor as in the daemon, without HTTP, database and judging."""

    def __init__(self, pool: EnginePool, runner: asyncio.Runner) -> None:
        self._pool = pool
        self._runner = runner

    def answer(self, prompts: list[str], plan: Plan) -> Timing:
        """Ask all prompts at once; return their tokens together and the time until the last is done."""
        return self._runner.run(self._all(prompts, plan))

    def threads(self, model: str) -> ThreadChoice | None:
        """Return the choice of threads told last."""
        return self._pool.status()[model].threads

    async def _all(self, prompts: list[str], plan: Plan) -> Timing:
        started = time.perf_counter()
        results = await asyncio.gather(*(self._one(prompt, plan) for prompt in prompts), return_exceptions=True)
        return _together(list(results), time.perf_counter() - started)

    async def _one(self, prompt: str, plan: Plan) -> Timing:
        now_ms = time.time_ns() // 1_000_000
        request = InferenceRequest(
            id=uuid7(now_ms),
            model=plan.model,
            messages=(Message("user", prompt),),
            sampling=Sampling(max_tokens=plan.tokens),
            received_at_ms=now_ms,
        )
        started = time.perf_counter()
        first = None
        ended = Generation()
        async for event in self._pool.generate(request):
            match event:
                case Delta(text=text):
                    if first is None and text:
                        first = time.perf_counter() - started
                case Generation():
                    ended = event
        if ended.failure:
            raise EngineFailed(f"the worker driven directly failed: {ended.failure.message}")
        total = time.perf_counter() - started
        return Timing(ended.output_tokens, first or total, total)


def _together(results: list[Timing | BaseException], total_s: float) -> Timing:
    timings = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        timings.append(result)
    return Timing(sum(t.tokens for t in timings), statistics.median(t.first_token_s for t in timings), total_s)


@contextlib.contextmanager
def _direct(data_path: Path, engine: EngineSettings) -> Iterator[_Direct]:
    with asyncio.Runner() as runner:
        pool = EnginePool(engine, open_store(data_path).resolve)
        try:
            yield _Direct(pool, runner)
        finally:
            runner.run(pool.stop(0))


@contextlib.contextmanager
def _daemon(data_path: Path, engine: EngineSettings, model: str) -> Iterator[tuple[float, subprocess.Popen[bytes]]]:
    """Run a daemon with the same engine, a free port and no target; yield the time to its first answer."""
    config = data_path.parent / "outrider.toml"
    config.write_text(_toml(data_path, msgspec.structs.replace(engine, model=model)), encoding="utf-8")
    log = data_path.parent / "log"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OUTRIDER_")}
    started = time.perf_counter()
    with running(executable.command("--config", str(config), "serve"), log, environ) as process:
        try:
            until_healthy(data_path, process, START_PATIENCE_S)
        except DaemonUnreachable as error:
            raise EngineFailed(
                f"the daemon to be measured: {last_line(log) or error}; see `outrider doctor`"
            ) from error
        yield time.perf_counter() - started, process


def _toml(data_path: Path, engine: EngineSettings) -> str:
    """Write the configuration; JSON's strings, numbers and booleans are TOML's."""
    lines = [f"data_dir = {json.dumps(str(data_path))}", "[server]", "port = 0", "[engine]"]
    lines += [f"{name} = {json.dumps(value)}" for name, value in msgspec.to_builtins(engine).items()]
    return "\n".join(lines) + "\n"
