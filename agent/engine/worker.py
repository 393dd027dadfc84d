"""The engine worker: ``<executable> engine-worker``, one model, frames on stdin and stdout.

Order matters here. File descriptor 1 is kept for frames and pointed at stderr before any
native library can print into it; the process locks itself in before it looks at a model.
"""

from __future__ import annotations

import gc
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import msgspec

from agent.engine import frames
from agent.engine.joined_pieces import JoinedPieces
from agent.types import Failure, FailureKind, ModelFormat

if TYPE_CHECKING:
    from agent.engine.label_scores import LabelScorer
    from agent.engine.named_prefixes import NamedPrefixes
    from agent.engine.runtime import Runtime
    from agent.engine.scheduler import Scheduler

READ_BYTES = 1 << 16
EXIT_BROKEN = 70
OWN_REQUESTS = 1  # the daemon's own, for a named prefix: in its count of the line it is no request
# Read by native libraries when they load: no gdb on an abort, no second pool of threads for numpy.
NATIVE_ENVIRONMENT = {"GGML_NO_BACKTRACE": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

Inbox = queue.SimpleQueue[frames.Command]


def main(arguments: Sequence[str]) -> int:
    """Serve one model until the daemon closes our input. Returns the exit status."""
    del arguments
    output = take_over_stdout()
    # The daemon ends us by closing our input; a Ctrl-C in its terminal is its business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ.update(NATIVE_ENVIRONMENT)
    _send(output, frames.Hello(frames.PROTOCOL, os.getpid()))
    inbox: Inbox = queue.SimpleQueue()
    reader = frames.command_reader()
    load = _first_command(reader, inbox)
    if not isinstance(load, frames.Load):
        return EXIT_BROKEN
    threading.Thread(target=_read_commands, args=(reader, inbox), name="frames", daemon=True).start()
    if load.model.format is ModelFormat.ONNX_ENCODER:
        return _encode(load, inbox, output)
    # Importing is our own code and a pinned package; what is not trusted is the model.
    from agent.engine import confinement, relaid_weights
    from agent.engine.drafting import drafting_of
    from agent.engine.label_scores import LabelScorer
    from agent.engine.memory_room import require_room
    from agent.engine.named_prefixes import NamedPrefixes
    from agent.engine.runtime import ModelUnloadable, runtime_of
    from agent.engine.scheduler import Scheduler

    started = time.monotonic()
    try:
        load_model = runtime_of(load.model.format)  # before the doors close: importing is no part of the model
        room = relaid_weights.make_room(load)
        in_force = confinement.confine() if load.confine else ()
        require_room(load)
        runtime = load_model(relaid_weights.relaid(load, room))
        drafting = drafting_of(load, runtime)
    except (ModelUnloadable, OSError) as error:
        _send(output, frames.LoadFailed(str(error)))
        return EXIT_BROKEN
    ready = frames.Ready(
        runtime=runtime.name,
        context_tokens=runtime.context_tokens,
        kv_tokens=runtime.cells,
        confinement=in_force,
        traits=runtime.traits,
        load_ms=(time.monotonic() - started) * 1000,
    )
    _send(output, ready)
    waiting_line = load.waiting_line + OWN_REQUESTS
    scheduler = Scheduler(
        runtime,
        waiting_line=waiting_line,
        thinking_budget=load.thinking_budget_tokens,
        drafting=drafting,
        interrupted=lambda: not (inbox.empty() and scorer.idle),
    )
    prefixes = NamedPrefixes(runtime, scheduler.prefixes, load.model)
    scorer = LabelScorer(runtime, waiting_line=load.waiting_line, named=scheduler.prefixes.named)
    return _serve(runtime, scheduler, scorer, prefixes, inbox, output)


def _encode(load: frames.Load, inbox: Inbox, output: int) -> int:
    """Serve an encoder. Returns the exit status when it cannot be loaded."""
    from agent.engine import confinement, encoder_worker
    from agent.engine.refusals import ModelUnloadable

    def send(event: frames.Event) -> None:
        if isinstance(event, frames.Step):
            _tell(output, event)
        else:
            _send(output, event)

    try:
        in_force = confinement.confine() if load.confine else ()
        runtime = encoder_worker.load(load, in_force, send)
    except (ModelUnloadable, OSError) as error:
        send(frames.LoadFailed(str(error)))
        return EXIT_BROKEN
    return encoder_worker.serve(runtime, inbox, send)


def _serve(
    runtime: Runtime,
    scheduler: Scheduler,
    scorer: LabelScorer,
    prefixes: NamedPrefixes,
    inbox: Inbox,
    output: int,
) -> NoReturn:
    joined = JoinedPieces()
    threads = None
    gc.collect()
    gc.freeze()  # what is there now stays: no pass of the collector has to look at it between two steps
    while True:
        while (scheduler.idle and scorer.idle) or not inbox.empty():
            match inbox.get():
                case frames.Generate() as ask:
                    scheduler.submit(ask)
                case frames.Score() as ask:
                    scorer.submit(ask)
                case frames.Encode(id=request_id):
                    refusal = Failure(FailureKind.REJECTED, "the model writes; it is no encoder", "model")
                    _send(output, frames.Step(encoded=(frames.Encoded(id=request_id, failure=refusal),)))
                case frames.Cancel(request_id):
                    scheduler.cancel(request_id)
                    scorer.cancel(request_id)
                case frames.Pin() as order:
                    prefixes.pin(order)
                case frames.PinData(data):
                    prefixes.take(data)
                case frames.FetchPrefix(name, offset):
                    prefixes.fetch(name, offset)
            for told in prefixes.news():
                _send(output, told)
        if not (scheduler.steady and scorer.idle) and (held := joined.flush()):
            _tell(output, held)
        # One batch each in turn: a long list of labels does not hold up those who generate.
        step = scheduler.step()
        if scored := scorer.step():
            step = msgspec.structs.replace(step, scored=scored)
        if due := joined.add(step, time.monotonic(), scheduler.held_s):
            if (choice := runtime.thread_choice) != threads:
                threads = choice
                due = msgspec.structs.replace(due, threads=choice)
            _tell(output, due)
        for told in prefixes.news():
            _send(output, told)


def take_over_stdout() -> int:
    """Keep fd 1 for frames under another number; whatever prints to stdout goes to stderr."""
    output = os.dup(1)
    os.dup2(2, 1)
    return output


def _send(output: int, event: frames.Event) -> None:
    _write(output, frames.encode(event))


def _tell(output: int, step: frames.Step) -> None:
    for frame in frames.encode_step(step):
        _write(output, frame)


def _write(output: int, frame: bytes) -> None:
    data = memoryview(frame)
    try:
        while data:
            data = data[os.write(output, data) :]
    except BrokenPipeError:
        os._exit(0)  # the daemon is gone


def _first_command(reader: frames.FrameReader[frames.Command], inbox: Inbox) -> frames.Command | None:
    while data := os.read(0, READ_BYTES):
        commands = list(reader.feed(data))
        for command in commands[1:]:
            inbox.put(command)
        if commands:
            return commands[0]
    return None


def _read_commands(reader: frames.FrameReader[frames.Command], inbox: Inbox) -> None:
    """Take commands until the input ends, then leave at once: the daemon is gone or says so.

    ``_exit`` and not an exception: the main thread may be deep in native code.
    """
    try:
        while data := os.read(0, READ_BYTES):
            for command in reader.feed(data):
                inbox.put(command)
    except frames.FrameError as error:
        _break(str(error))
    except Exception as error:
        # Of a command that is half read nothing can be said, and nothing behind it can be found.
        _break(f"a command could not be read: {type(error).__name__}")
    os._exit(0)


def _break(message: str) -> NoReturn:
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()
    os._exit(EXIT_BROKEN)
