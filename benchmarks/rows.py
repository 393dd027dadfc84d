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


SUMMED_UP = {  # column: how the row of a set begins that has it
    "right": "accuracy, n=",
    "AUROC, ours": "AUROC, top probability",
    "entropy alone": "AUROC, entropy alone",
    "E-AURC": "E-AURC, top probability",
    "ECE, 100 labels": "ECE, 100 labels",
    "served at 95 %, oracle": "coverage at 95%",
    "certified, of that": "95%, n=300, pac (ours): coverage",
    "broken": "95%, n=300, pac (ours): promises broken",
    "naive: broken": "95%, n=300, naive threshold: promises broken",
    "APGR, of its most": "APGR, perfect cloud (simulated), share of its maximum",
}


def summary(rows: Sequence[Row]) -> str:
    """Return one line a set of taught heads, of the figures that tell most."""
    lines = [f"| Set | {' | '.join(SUMMED_UP)} |", "|---" + "|---:" * len(SUMMED_UP) + "|"]
    for name in dict.fromkeys(row.set for row in rows):
        own = [row for row in rows if row.set == name]
        found = [next((row for row in own if row.what.startswith(begin)), None) for begin in SUMMED_UP.values()]
        if sum(row is not None for row in found) > len(SUMMED_UP) // 2:
            lines.append(f"| {name} | {' | '.join(f'{row.value:.3f}' if row else '' for row in found)} |")
    return "\n".join(lines) + "\n"
