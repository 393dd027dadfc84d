"""The figures of written answers as tables: a short one of all sets, and all figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import certificates
from benchmarks.certificates import Answers

Figure = tuple[str, float, tuple[float, float] | None, str, bool | None]  # what, value, interval, wanted, met
Row = tuple[str, Figure]  # set

BEGIN, END = "<!-- open: begin -->", "<!-- open: end -->"
OURS = ("AUROC, appraiser (ours)", "AUROC, score (ours)")
SHORT = (
    ("right", "accuracy"),
    ("AUROC, ours", OURS),
    ("raw sum", "AUROC, raw log-probability"),
    ("mean, scaled", "AUROC, mean log-probability"),
    ("entropy", "AUROC, entropy alone"),
    ("served at 90 %, oracle", "coverage at 90%"),
)


def written(document: Path, rows: Sequence[Row]) -> None:
    """Put the tables into a document, between its two marks."""
    before, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    document.write_text(f"{before}{BEGIN}\n{markdown(rows)}{END}{rest.partition(END)[2]}", encoding="utf-8")


def markdown(rows: Sequence[Row]) -> str:
    lines = [*short(rows), ""]
    lines += ["| Set | What | Value | 95 % interval | Wanted | |", "|---|---|---:|---|---|---|"]
    for name, (what, value, interval, wanted, met) in rows:
        between = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
        mark = "" if met is None else ("yes" if met else "**no**")
        lines.append(f"| {name} | {what} | {value:.3f} | {between} | {wanted} | {mark} |")
    return "\n".join(lines) + "\n"


def short(rows: Sequence[Row]) -> list[str]:
    """Return a table with one line a set."""
    lines = [f"| Set | {' | '.join(head for head, _ in SHORT)} |", "|---|" + "---:|" * len(SHORT)]
    for name in dict.fromkeys(name for name, _ in rows):
        figures = [figure for of, figure in rows if of == name]
        cells = []
        for _, start in SHORT:
            found = next((one for one in figures if one[0].startswith(start)), None)
            told = "" if found is None else f"{found[1]:.3f}"
            if found and found[2] and found[0] in OURS:
                told += f" ({found[2][0]:.2f} to {found[2][1]:.2f})"
            cells.append(told)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def gaps(answers: Answers) -> Iterator[Figure]:
    """Yield how soon the gap to a simulated cloud is closed: to one that never errs, and to one that errs."""
    for cloud, which in ((1.0, "perfect cloud"), (0.95, "95 % cloud")):
        apgr, most, needed = certificates.attainable(answers, cloud)
        if math.isfinite(apgr):
            yield f"APGR, {which} (simulated); at most {most:.3f}", apgr, None, "", None
            for level, share in needed.items():
                yield f"CPT({level:.0%}), {which} (simulated)", share, None, "", None
