"""``<executable> engine-speed``: one model in a confined child, and how fast its steps are.

No scheduler and no sampling: what is measured is the native library under one choice of
threads or another, the way ``outrider tune`` compares them.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence

import msgspec

from agent.engine import confinement, frames, relaid_weights
from agent.engine.kv_cache import CELL_STEP
from agent.engine.llama_cpp_runtime import LlamaCppRuntime
from agent.engine.prefill_pace import TILE_TOKENS
from agent.engine.runtime import Chunk, ModelUnloadable
from agent.engine.speed import Answer, Loaded, Ran, Refused, Stretch
from agent.engine.threads import StepKind, StepThreads
from agent.engine.worker import EXIT_BROKEN, take_over_stdout

PAUSE_S = 0.03  # between stretches
PROMPT_TOKENS = 32  # in the slot before the first token of a decoding stretch


def main(arguments: Sequence[str]) -> int:
    """Serve stretches until our input ends. Returns the exit status."""
    del arguments
    with os.fdopen(take_over_stdout(), "wb", buffering=0) as output:

        def tell(answer: Answer) -> None:
            output.write(msgspec.json.encode(answer) + b"\n")

        load = msgspec.json.decode(sys.stdin.buffer.readline(), type=frames.Load)
        try:
            room = relaid_weights.make_room(load)
            if load.confine:
                confinement.confine()
            runtime = LlamaCppRuntime(relaid_weights.relaid(load, room))
        except (ModelUnloadable, OSError) as error:
            tell(Refused(str(error)))
            return EXIT_BROKEN
        choices = {0: StepThreads(0)}
        tell(
            Loaded(
                runtime=runtime.name,
                most_threads=choices[0].most,
                cell_bytes=runtime.cell_bytes(load.kv_type),
                kv_tokens=runtime.cells,
            )
        )
        orders = msgspec.json.Decoder(Stretch)
        for line in sys.stdin.buffer:
            stretch = orders.decode(line)
            if stretch.threads not in choices:
                choices[stretch.threads] = StepThreads(stretch.threads)
            runtime.step_threads = choices[stretch.threads]
            tell(_run(runtime, stretch))
    return 0


def _run(runtime: LlamaCppRuntime, stretch: Stretch) -> Ran:
    # A thread of the stretch before spins for some milliseconds: no other program, but taken for one.
    time.sleep(PAUSE_S)
    tokens = 0
    changes: list[tuple[float, int]] = []
    until = float("inf")
    begin = time.monotonic()
    for chunk, counts in _chunks(runtime, StepKind(stretch.kind)):
        now = time.monotonic()
        if counts and until == float("inf"):
            begin, until = now, now + stretch.seconds
        if now >= until:
            break
        if chunk.start == 0:
            runtime.clear(0)
        runtime.decode([chunk])
        if not counts:
            continue
        tokens += len(chunk.tokens)
        if not changes or changes[-1][1] != runtime.step_threads.latest:
            changes.append((now, runtime.step_threads.latest))
    return Ran(
        tokens=tokens,
        seconds=time.monotonic() - begin,
        changes=tuple(changes),
        choice=runtime.thread_choice,
    )


def _chunks(runtime: LlamaCppRuntime, kind: StepKind) -> Iterator[tuple[Chunk, bool]]:
    """Yield steps for ever, and whether each counts: the prompt before a decoding stretch does not."""
    room = min(runtime.context_tokens, 2 * CELL_STEP)
    tokens = [100 + 37 * at % (runtime.vocabulary_size - 200) for at in range(room)]
    while True:
        size = min(TILE_TOKENS, runtime.batch_tokens, room)
        if kind is StepKind.PREFILL:
            yield from ((Chunk(0, at, tokens[at : at + size], wants_row=False), True) for at in range(0, room, size))
        else:
            yield Chunk(0, 0, tokens[:PROMPT_TOKENS], wants_row=True), False
            yield from ((Chunk(0, at, tokens[at : at + 1], wants_row=True), True) for at in range(PROMPT_TOKENS, room))
