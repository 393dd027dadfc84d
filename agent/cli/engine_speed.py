"""How fast the engine's steps are under fixed numbers of threads and under the adaptive choice.

One model in one child process; the choices take turns in short stretches, so that what the
machine does meanwhile meets all of them alike. Compared are the medians of their stretches.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from agent import device, executable
from agent.engine import frames
from agent.engine.speed import Answer, Loaded, Ran, Refused, Stretch
from agent.engine.worker_process import worker_environment
from agent.engine.worker_status import ThreadChoice
from agent.errors import EngineFailed, InvalidRequest
from agent.settings import EngineSettings
from agent.types import KvType, ModelFile, ModelFormat

ADAPTIVE = 0  # as a number of threads
CONTEXT_TOKENS = 1024
KINDS = ("decode", "prefill")
SETTLE_S = 0.5  # after the load of the machine was changed
LEAVE_S = 5.0
LEAST_RATIO = 0.95
LONGEST_RETURN_S = 1.0


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """The stretches of one kind of steps under one load: tokens a second by number of threads."""

    kind: str
    load: str  # "as it is", or "busy": one spinning process a core beside us
    rates: dict[int, tuple[float, ...]]
    choice: ThreadChoice  # the adaptive one at the end

    def median(self, threads: int) -> float:
        """Median of one choice, tokens a second."""
        return statistics.median(self.rates[threads])

    @property
    def adaptive(self) -> float:
        """Median of the adaptive choice."""
        return self.median(ADAPTIVE)

    @property
    def best_fixed(self) -> tuple[int, float]:
        """The best fixed number, and its median."""
        best = max((number for number in self.rates if number != ADAPTIVE), key=self.median)
        return best, self.median(best)

    @property
    def ratio(self) -> float:
        """Adaptive to the best fixed number."""
        return self.adaptive / self.best_fixed[1]


class EngineSpeed:
    """A loaded model in a child; ``run`` has it work for a while."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._answers: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)
        self.loaded: Loaded

    def open(self, load: frames.Load) -> None:
        """Wait until the model is in memory. Raises EngineFailed."""
        answer = self._ask(load)
        assert isinstance(answer, Loaded)
        self.loaded = answer

    def run(self, kind: str, threads: int, seconds: float) -> Ran:
        """Run steps for a while. Raises EngineFailed."""
        answer = self._ask(Stretch(kind=kind, threads=threads, seconds=seconds))
        assert isinstance(answer, Ran)
        return answer

    def _ask(self, order: frames.Load | Stretch) -> Answer:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(msgspec.json.encode(order) + b"\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise EngineFailed(f"the measured engine ended with exit status {self._process.wait()}")
        answer = self._answers.decode(line)
        if isinstance(answer, Refused):
            raise EngineFailed(f"the model cannot be loaded: {answer.message}")
        return answer


@contextlib.contextmanager
def engine_speed(file: ModelFile, settings: EngineSettings, kv_type: KvType) -> Iterator[EngineSpeed]:
    """Load the model in a child of its own. Raises EngineFailed, InvalidRequest for one that is no GGUF file."""
    if file.format is not ModelFormat.GGUF:
        raise InvalidRequest(
            f"model {file.name} is {file.format}: threads and cache types are compared for GGUF models; "
            f"{file.format.runtime} has the threads of engine.threads from its load on"
        )
    load = frames.Load(
        model=file,
        context_tokens=min(CONTEXT_TOKENS, file.context_tokens),
        parallel=1,
        waiting_line=0,
        threads=ADAPTIVE,
        confine=settings.confine,
        kv_type=kv_type,
        weights=settings.weights,
    )
    command = executable.command("engine-speed")
    environ = worker_environment(os.environ)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ) as process:
        try:
            speed = EngineSpeed(process)
            speed.open(load)
            yield speed
        finally:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            try:
                process.wait(LEAVE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def numbers_worth_a_look(most: int) -> list[int]:
    """Return 1, the powers of two, three quarters of the most, and the most."""
    powers = {1 << power for power in range(most.bit_length()) if 1 << power <= most}
    return sorted(powers | {max(1, 3 * most // 4), most})


def measure(
    speed: EngineSpeed,
    numbers: Sequence[int],
    load: str,
    *,
    rounds: int,
    stretch_s: float,
    tell: Callable[[str], None],
) -> list[Cell]:
    """Run all numbers and the adaptive choice in turn; return a cell for decoding and one for prompts."""
    choices = [ADAPTIVE, *numbers]
    rates: dict[str, dict[int, list[float]]] = {kind: {number: [] for number in choices} for kind in KINDS}
    latest: dict[str, ThreadChoice] = {}
    for number in range(rounds):
        tell(f"machine {load}: round {number + 1} of {rounds}")
        for kind in KINDS:
            for threads in reversed(choices) if number % 2 else choices:
                ran = speed.run(kind, threads, stretch_s)
                rates[kind][threads].append(ran.rate)
                if threads == ADAPTIVE:
                    latest[kind] = ran.choice
    return [
        Cell(
            kind=kind,
            load=load,
            rates={threads: tuple(of_one) for threads, of_one in rates[kind].items()},
            choice=latest[kind],
        )
        for kind in KINDS
    ]


@contextlib.contextmanager
def busy_machine() -> Iterator[Callable[[], None]]:
    """Keep one process a core spinning; what is yielded ends them."""
    spinning = [
        subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
        for _ in range(device.profile().logical_cores)
    ]

    def end() -> None:
        for process in spinning:
            process.kill()
        for process in spinning:
            process.wait()

    try:
        time.sleep(SETTLE_S)
        yield end
    finally:
        end()


def return_s(speed: EngineSpeed, kind: str, *, busy_s: float = 1.5, free_s: float = 1.2) -> float | None:
    """Return how long after the last of the other programs has ended a step has all cores; None: none had."""
    most = speed.loaded.most_threads
    with busy_machine() as end, ThreadPoolExecutor(1) as pool:
        running = pool.submit(speed.run, kind, ADAPTIVE, busy_s + free_s)
        time.sleep(busy_s)
        end()
        freed = time.monotonic()
        ran = running.result()
    if ran.changes[-1][0] < freed:
        return 0.0 if ran.changes[-1][1] == most else None
    return next((at - freed for at, threads in ran.changes if at >= freed and threads == most), None)
