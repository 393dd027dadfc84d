"""What is measured: the cells, their contestants, and what is wanted of each figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks import prompts, samples
from benchmarks.contestants import (
    LOOKUPS,
    NAMED,
    ONE_THREAD,
    OURS,
    PYTHON,
    REQUANTIZED,
    SERVER,
    SLOTS,
    STORED,
    UNGUESSED,
)
from benchmarks.intervals import Statistic, median, p95
from benchmarks.samples import LLAMA_BENCH, Sample

BUSY = "busy-"  # before a cell's name: one spinning process per core beside it


@dataclass(frozen=True)
class Wanted:
    """What a figure should be. One of the bounds is set."""

    ratio: float | None = None  # at least, of the medians
    reaches: float | None = None  # at least, of the upper end of the ratio's interval
    at_most: float | None = None  # of our own figure

    def __str__(self) -> str:
        if self.ratio is not None:
            return f"ratio >= {self.ratio:g}"
        if self.reaches is not None:
            return f"interval reaches {self.reaches:g}"
        return f"<= {self.at_most:g}"


@dataclass(frozen=True)
class Comparison:
    """One row to be made of a cell. ``peers``: with several, the one that did best."""

    figure: str
    what: str
    peers: tuple[str, ...]
    wanted: Wanted | None = None
    peer_figure: str = ""  # where it is not the same
    ours: str = OURS
    less_is_better: bool = False
    statistic: Statistic = median


@dataclass(frozen=True)
class Cell:
    """One thing to do, by whom, and the rows that come of it."""

    name: str
    what: str
    sample: Sample
    sides: tuple[str, ...]
    rows: tuple[Comparison, ...]
    repeat: int = 1  # samples of each side in a round
    quick_rounds: int = 0  # in the short run; 0: not part of it
    round_s: float = 0.0  # what a sample of all sides takes about on two free cores, where that has to be known

    @property
    def busy(self) -> bool:
        return self.name.startswith(BUSY)


PAR = Wanted(reaches=1.0)
ONLY_IDLE = {"ceiling", "memory", "copying", "first-restart", "whole-1", "whole-4", "whole-16", "long-16"}
BEST_FIXED = (SERVER, ONE_THREAD)


def _rate(*peers: str, wanted: Wanted | None = None) -> Comparison:
    return Comparison("tokens_per_s", "tokens/s", peers, wanted)


def _cpu(*peers: str) -> Comparison:
    return Comparison("cpu_s_per_answer", "CPU s per answer", peers, less_is_better=True)


def _first(*peers: str, wanted: Wanted | None = None, statistic: Statistic = median) -> Comparison:
    what = "p95 of the first token, ms" if statistic is p95 else "first token, ms"
    return Comparison("first_ms", what, peers, wanted, less_is_better=True, statistic=statistic)


def _against_fixed(figure: Comparison, defaults: float) -> tuple[Comparison, ...]:
    return (
        replace(figure, peers=(SERVER,), wanted=Wanted(ratio=defaults)),
        replace(figure, peers=BEST_FIXED, wanted=Wanted(ratio=0.95)),
    )


def _speed_cells() -> list[Cell]:
    cells = []
    for clients, tokens, quick in ((1, 64, 3), (4, 48, 0), (16, 32, 1)):
        many = f"{clients} clients" if clients > 1 else "1 client"
        slow = (PYTHON,) if clients < 16 else ()  # its streams do not tell how many tokens they had
        for kind, stream in (("stream", True), ("whole", False)):
            cells.append(
                Cell(
                    f"{kind}-{clients}",
                    f"{many}, short prompts, {tokens} tokens {'streamed' if stream else 'in one piece'}",
                    samples.speed(clients, tokens, stream=stream),
                    (OURS, SERVER, *(() if stream else slow)),
                    (_rate(SERVER, wanted=PAR), _cpu(SERVER), *(() if stream else map(_rate, slow))),
                    quick_rounds=quick if stream else 0,
                    round_s=1.8 if clients == 1 else 13.0,
                )
            )
        cells.append(
            Cell(
                f"long-{clients}",
                f"{many}, prompts of 512 tokens, 32 tokens streamed",
                samples.speed(clients, 32, words=512 - samples.FRAME_TOKENS),
                (OURS, SERVER),
                (_rate(SERVER, wanted=PAR), _cpu(SERVER)),
            )
        )
    return cells


def _single_cells() -> list[Cell]:
    return [
        Cell(
            "ceiling",
            "decode alone, 64 tokens",
            samples.ceiling,
            (OURS, SERVER, LLAMA_BENCH),
            (
                Comparison("decode_per_s", "tokens/s", (LLAMA_BENCH,), Wanted(ratio=0.95)),
                Comparison("decode_per_s", "tokens/s", (SERVER,)),
            ),
            quick_rounds=2,
            round_s=3.6,
        ),
        Cell(
            "first-64",
            "prompt of 64 tokens",
            samples.first_token(64),
            (OURS, SERVER),
            (_first(SERVER, wanted=Wanted(at_most=200.0), statistic=p95), _first(SERVER)),
            repeat=5,
            quick_rounds=1,
            round_s=0.8,
        ),
        Cell("first-cold", "prompt of 512 tokens, cold", samples.first_token(512), (OURS, SERVER), (_first(SERVER),)),
        Cell(
            "first-shared",
            "new question behind a shared system prompt of 400 tokens",
            samples.first_after_shared,
            (OURS, SERVER),
            (_first(SERVER),),
        ),
        Cell(
            "first-restart",
            "the same after a restart, from disk",
            samples.first_after_restart,
            (NAMED, SLOTS),
            (
                Comparison("restart_ms", "first token, ms", (SLOTS,), less_is_better=True, ours=NAMED),
                Comparison(
                    "restart_ms",
                    "first token, ms, beside our own from memory",
                    (NAMED,),
                    Wanted(ratio=0.83),  # at most 1.2 times as long
                    peer_figure="warm_ms",
                    less_is_better=True,
                    ours=NAMED,
                ),
            ),
        ),
        Cell(
            "copying",
            "answers that copy from their prompts",
            samples.copying,
            (OURS, UNGUESSED, SERVER, *LOOKUPS),
            (
                Comparison("decode_per_s", "tokens/s", (UNGUESSED,), Wanted(ratio=1.3)),
                Comparison("decode_per_s", "tokens/s", (SERVER,)),
                Comparison("decode_per_s", "tokens/s", LOOKUPS),
            ),
        ),
        *(_labels(*chosen, listed=listed) for chosen in _LABEL_SETS for listed in (True, False)),
        *(
            Cell(
                f"schema-{clients}",
                f"{clients} {'clients' if clients > 1 else 'client'}, JSON schema of five fields",
                samples.schema(clients),
                (OURS, SERVER),
                (Comparison("answers_per_s", "answers/s", (SERVER,)), _rate(SERVER), _cpu(SERVER)),
            )
            for clients in (1, 4)
        ),
        Cell(
            "memory",
            "16 places of 1,024 tokens",
            samples.memory,
            (OURS, SERVER),
            (Comparison("resident_mib", "MiB resident", (SERVER,), less_is_better=True),),
            quick_rounds=1,
            round_s=4.0,
        ),
    ]


def _form_cells() -> list[Cell]:
    """Return how much of a lead is the form of the weights in memory: ours without, and theirs with it."""
    cells = []
    for name, ours, peer in (("stored", STORED, SERVER), ("requantized", OURS, REQUANTIZED)):
        whose = "weights as stored" if ours is STORED else "llama-server given the same weights as Q8_0"
        rate = replace(_rate(peer), ours=ours)
        first = replace(_first(peer), ours=ours)
        cells += [
            Cell(f"{name}-1", f"1 client, {whose}, 64 tokens", samples.speed(1, 64), (ours, peer), (rate,)),
            Cell(f"{name}-16", f"16 clients, {whose}, 32 tokens", samples.speed(16, 32), (ours, peer), (rate,)),
            Cell(f"{name}-first", f"prompt of 64 tokens, {whose}", samples.first_token(64), (ours, peer), (first,)),
        ]
    return cells


_LABEL_SETS = ((10, prompts.LABELS_10, 2.0), (77, prompts.LABELS_77, 5.0))


def _labels(count: int, names: Sequence[str], wanted: float, *, listed: bool) -> Cell:
    where = "listed in the prompt" if listed else "not listed in the prompt"
    return Cell(
        f"labels-{count}" if listed else f"labels-{count}-brief",
        f"likelihood of all {count} labels, {where}, cold",
        samples.labels(names, listed=listed),
        (OURS, SERVER),
        (
            Comparison("cpu_s", "CPU s", (SERVER,), Wanted(ratio=wanted), less_is_better=True),
            Comparison("wall_ms", "ms", (SERVER,), less_is_better=True),
        ),
        quick_rounds=int(count == 10 and listed),
        round_s=4.5,
    )


def _busy(cell: Cell) -> Cell:
    """Return the cell beside spinning processes, against the defaults and the best fixed number of threads."""
    figure = replace(cell.rows[0], wanted=None, statistic=median)
    if figure.figure == "first_ms":
        rows = _against_fixed(replace(figure, what="first token, ms"), 1.2)
    elif figure.figure in {"tokens_per_s", "answers_per_s"}:
        rows = _against_fixed(figure, 1.2 if cell.name.startswith("long") else 1.5)
    else:
        rows = (replace(figure, peers=(SERVER,)), replace(figure, peers=BEST_FIXED))
    return replace(
        cell,
        name=BUSY + cell.name,
        what=f"busy: {cell.what}",
        sides=(OURS, SERVER, ONE_THREAD),
        rows=rows,
        repeat=1,
        quick_rounds=0,
    )


def all_cells() -> dict[str, Cell]:
    """Return every cell by name."""
    idle = [*_speed_cells(), *_single_cells()]
    forms = _form_cells()
    busy = [_busy(cell) for cell in idle if cell.name not in ONLY_IDLE]
    return {cell.name: cell for cell in (*idle, *forms, *busy)}
