"""Rows of the benchmark of confidence, and rows as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One figure of one set."""

    set: str
    what: str
    value: float
    interval: tuple[float, float] | None = None
    wanted: str = ""
    ok: bool | None = None  # None: nothing is wanted
    peer: float | None = None  # what it stands beside: another program's, an oracle's, a floor


def as_json(row: Row) -> dict[str, Any]:
    """Return a row as all benchmarks write it. ``peer``: another program's figure, an oracle's or a floor, or null."""
    return {
        "name": f"{row.set}: {row.what}",
        "ours": row.value,
        "peer": row.peer,
        "ratio": row.value / row.peer if row.peer else None,
        "interval": row.interval,
        "wanted": row.wanted or None,
        "ok": row.ok,
    }


def markdown(rows: Sequence[Row]) -> str:
    lines = ["| Set | What | Value | 95 % interval | Wanted | |", "|---|---|---:|---|---|---|"]
    for row in rows:
        interval = f"{row.interval[0]:.3f} to {row.interval[1]:.3f}" if row.interval else ""
        mark = "" if row.ok is None else ("yes" if row.ok else "**no**")
        lines.append(f"| {row.set} | {row.what} | {row.value:.3f} | {interval} | {row.wanted} | {mark} |")
    return "\n".join(lines) + "\n"
