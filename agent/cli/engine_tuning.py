"""The measurement behind ``outrider tune``, and what it says about the settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from agent import device
from agent.cli.engine_speed import ADAPTIVE, Cell, busy_machine, engine_speed, measure, numbers_worth_a_look
from agent.cli.output import size
from agent.settings import EngineSettings
from agent.types import KvType, ModelFile

CLEARLY = 1.05  # times faster that a fixed number or another type of cache must be to be advised
SAVED_SHARE = 1.5  # with the beginnings of prompts that are kept beside the slots
WARM_UP_S = 0.3


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """The median of one choice."""

    kind: str  # decode or prefill
    load: str
    kv_type: KvType
    threads: int  # 0: the adaptive choice
    rate: float  # tokens a second
    ratio: float  # to the best fixed number


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """What a setting should be here."""

    setting: str
    value: str
    why: str


class Tuning(msgspec.Struct, frozen=True, kw_only=True):
    """All that was measured, and what follows from it."""

    model: str
    runtime: str
    measured: tuple[Measured, ...]
    threads: int  # a fixed number that clearly beats the adaptive choice; 0: none does
    advice: tuple[Advice, ...]


def measure_tuning(
    file: ModelFile,
    engine: EngineSettings,
    *,
    rounds: int,
    stretch_s: float,
    busy: bool,
    tell: Callable[[str], None],
) -> Tuning:
    """Measure everything. Raises EngineFailed when the model cannot be loaded."""
    cells: dict[KvType, list[Cell]] = {}
    cell_bytes: dict[KvType, int] = {}
    runtime = ""
    for kv_type in sorted(KvType, key=lambda one: one is not engine.kv_type):
        with engine_speed(file, engine, kv_type) as speed:
            runtime = speed.loaded.runtime
            most = speed.loaded.most_threads
            numbers = numbers_worth_a_look(most) if kv_type is engine.kv_type else [most]
            cell_bytes[kv_type] = speed.loaded.cell_bytes
            for threads in (ADAPTIVE, *numbers):
                speed.run("prefill", threads, WARM_UP_S)
            tell(f"cache of {kv_type}")
            cells[kv_type] = measure(speed, numbers, "as it is", rounds=rounds, stretch_s=stretch_s, tell=tell)
            if busy and kv_type is engine.kv_type:
                with busy_machine():
                    cells[kv_type] += measure(speed, numbers, "busy", rounds=rounds, stretch_s=stretch_s, tell=tell)
    fixed = better_fixed(cells[engine.kv_type])
    return Tuning(
        model=file.name,
        runtime=runtime,
        measured=tuple(
            _measured(kv_type, cell, threads) for kv_type in cells for cell in cells[kv_type] for threads in cell.rates
        ),
        threads=fixed,
        advice=(
            _thread_advice(cells[engine.kv_type], fixed),
            kv_advice(
                {kv_type: of_one[:2] for kv_type, of_one in cells.items()},
                cell_bytes,
                engine,
                device.profile().memory_usable,
            ),
        ),
    )


def _measured(kv_type: KvType, cell: Cell, threads: int) -> Measured:
    rate = cell.median(threads)
    return Measured(
        kind=cell.kind, load=cell.load, kv_type=kv_type, threads=threads, rate=rate, ratio=rate / cell.best_fixed[1]
    )


def better_fixed(cells: Sequence[Cell]) -> int:
    """Return a fixed number that is at least as fast everywhere and clearly faster somewhere; 0: there is none."""
    for number in sorted(set(cells[0].rates) - {ADAPTIVE}, reverse=True):
        gains = [cell.median(number) / cell.adaptive for cell in cells]
        if min(gains) >= 1 and max(gains) >= CLEARLY:
            return number
    return 0


def _thread_advice(cells: Sequence[Cell], fixed: int) -> Advice:
    figures = "; ".join(
        f"{cell.kind}, machine {cell.load}: {cell.ratio:.2f} of the best fixed number ({cell.best_fixed[0]})"
        for cell in cells
    )
    if fixed:
        return Advice(setting="engine.threads", value=str(fixed), why=f"it beats the adaptive choice here: {figures}")
    choice = cells[0].choice
    return Advice(
        setting="engine.threads",
        value="0",
        why=f"adaptive, now {choice.decode} for decoding and {choice.prefill} for prompts: {choice.reason}. {figures}",
    )


def kv_advice(
    cells: dict[KvType, list[Cell]], cell_bytes: dict[KvType, int], engine: EngineSettings, memory: int
) -> Advice:
    """Say which type of cache suits: f16, unless it does not fit or q8_0 is clearly faster at both kinds of steps."""
    tokens = engine.context_tokens * engine.parallel
    wanted = int(tokens * cell_bytes[KvType.F16] * SAVED_SHARE)
    smaller = int(tokens * cell_bytes[KvType.Q8_0] * SAVED_SHARE)
    gains = [
        small.adaptive / usual.adaptive for small, usual in zip(cells[KvType.Q8_0], cells[KvType.F16], strict=True)
    ]
    speeds = ", ".join(f"{cell.kind} {gain:.2f}" for cell, gain in zip(cells[KvType.F16], gains, strict=True))
    figures = f"f16 takes {size(wanted)}, q8_0 {size(smaller)}, {size(memory)} are free; q8_0 to f16 in speed: {speeds}"
    if wanted > memory / 2:
        return Advice(setting="engine.kv_type", value=KvType.Q8_0, why=f"memory is short: {figures}")
    if min(gains) >= CLEARLY:
        return Advice(setting="engine.kv_type", value=KvType.Q8_0, why=f"it is faster: {figures}")
    return Advice(setting="engine.kv_type", value=KvType.F16, why=f"it fits and keeps keys and values exact: {figures}")
