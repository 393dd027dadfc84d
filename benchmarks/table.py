"""From the figures of the rounds to rows, and from rows to text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.cells import Cell, Comparison, Wanted
from benchmarks.intervals import Ratio, ratio
from benchmarks.measurement import Samples

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


class Row(NamedTuple):
    """One comparison. A ratio above 1 means that ours is better, whatever the unit."""

    name: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    interval: tuple[float, float]  # 95 %, of the ratio
    rounds: int
    wanted: str | None
    ok: bool | None  # None: nothing is wanted


def rows_of(cell: Cell, samples: Samples) -> Iterator[Row]:
    """Yield the rows of a cell; none where a contestant has no figures."""
    for comparison in cell.rows:
        if all(samples.get(side) for side in (comparison.ours, *comparison.peers)):
            yield _row(cell, comparison, samples)


def _row(cell: Cell, comparison: Comparison, samples: Samples) -> Row:
    def values(side: str, figure: str = comparison.peer_figure or comparison.figure) -> list[float]:
        return [figures[figure] for figures in samples[side]]

    statistic = comparison.statistic
    choose = min if comparison.less_is_better else max
    peer = choose(comparison.peers, key=lambda side: statistic(values(side)))
    ours, theirs = values(comparison.ours, comparison.figure), values(peer)
    found = ratio(theirs, ours, statistic) if comparison.less_is_better else ratio(ours, theirs, statistic)
    best = "the best of several, " if len(comparison.peers) > 1 else ""
    return Row(
        name=f"{cell.what}: {comparison.what}",
        ours=statistic(ours),
        peer=statistic(theirs),
        peer_name=best + peer,
        ratio=found.value,
        interval=(found.low, found.high),
        rounds=len(ours),
        wanted=str(comparison.wanted) if comparison.wanted else None,
        ok=_holds(comparison.wanted, found, statistic(ours)) if comparison.wanted else None,
    )


def _holds(wanted: Wanted, found: Ratio, ours: float) -> bool:
    if wanted.ratio is not None:
        return found.value >= wanted.ratio
    if wanted.reaches is not None:
        return found.high >= wanted.reaches
    assert wanted.at_most is not None
    return ours <= wanted.at_most


def as_json(row: Row) -> dict[str, object]:
    """Return the row with its figures rounded to what they can bear."""
    return {
        "name": f"{row.name}, beside {row.peer_name}",
        "ours": _short(row.ours),
        "peer": _short(row.peer),
        "ratio": round(row.ratio, 3),
        "interval": [round(bound, 3) for bound in row.interval],
        "rounds": row.rounds,
        "wanted": row.wanted,
        "ok": row.ok,
    }


def markdown(rows: list[Row]) -> str:
    """Return a table, one line for each row, the misses among them."""
    lines = [
        "| What | Outrider | Peer | | Ratio | 95 % interval | Rounds | Wanted | |",
        "|---|---:|---:|---|---:|---|---:|---|---|",
    ]
    for row in rows:
        low, high = row.interval
        verdict = "" if row.ok is None else ("ok" if row.ok else "**missed**")
        cells = (row.name, f"{_short(row.ours):g}", f"{_short(row.peer):g}", row.peer_name, f"{row.ratio:.2f}")
        rest = (f"{low:.2f} to {high:.2f}", str(row.rounds), row.wanted or "", verdict)
        lines.append(f"| {' | '.join((*cells, *rest))} |")
    return "\n".join(lines) + "\n"


def put_into(path: Path, rows: list[Row], *, begin: str = BEGIN, end: str = END) -> None:
    """Replace what stands between the two marks of a document. Raises ValueError where it has none."""
    before, found_begin, rest = path.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"{path} has no {begin} and {end} to put the table between")
    path.write_text(f"{before}{begin}\n{markdown(rows)}{end}{after}", encoding="utf-8")


def _short(value: float) -> float:
    return float(f"{value:.4g}")
