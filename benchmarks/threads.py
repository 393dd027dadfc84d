"""Adaptive threads beside every fixed number: decoding and prompts, on a free and on a busy machine.

    .venv/bin/python benchmarks/threads.py [--quick] [--json]

Busy is one spinning process a core. The choices take turns in short stretches on one loaded
model; a row compares medians: ``ours`` is the adaptive choice, ``peer`` the best fixed number,
both in tokens a second. The last rows are the seconds from the end of the spinning processes
to the first step on all cores. Exit code 1 when a row is not what is wanted. Nothing else
should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agent.cli.engine_speed import (
    ADAPTIVE,
    KINDS,
    LEAST_RATIO,
    LONGEST_RETURN_S,
    Cell,
    busy_machine,
    engine_speed,
    measure,
    numbers_worth_a_look,
    return_s,
)
from agent.models.store import open_store
from agent.settings import EngineSettings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under 50 seconds")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--model", default=EngineSettings().model)
    given = parser.parse_args()
    rounds, stretch_s = (3, 0.5) if given.quick else (9, 1.5)
    tell = print_to_stderr
    cells: list[Cell] = []
    with tempfile.TemporaryDirectory() as folder:
        file = open_store(Path(folder)).resolve(given.model)
        with engine_speed(file, EngineSettings(), EngineSettings().kv_type) as speed:
            numbers = numbers_worth_a_look(speed.loaded.most_threads)
            for kind in KINDS:  # the first steps pay for memory and caches
                for threads in (ADAPTIVE, *numbers):
                    speed.run(kind, threads, 0.3)
            cells += measure(speed, numbers, "as it is", rounds=rounds, stretch_s=stretch_s, tell=tell)
            with busy_machine():
                cells += measure(speed, numbers, "busy", rounds=rounds, stretch_s=stretch_s, tell=tell)
            returns = {kind: [return_s(speed, kind) for _ in range(1 if given.quick else 5)] for kind in KINDS}
    rows = [compared(cell) for cell in cells]
    rows += [returned(kind, seconds) for kind, seconds in returns.items()]
    if given.json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            figures = ["-" if row[key] is None else f"{row[key]:.2f}" for key in ("ours", "peer", "ratio")]
            print(
                f"{row['name']:<50} {' '.join(f'{figure:>8}' for figure in figures)}  {row['wanted']:<14} {row['ok']}"
            )
        for cell in cells:
            medians = {number or "adaptive": round(statistics.median(of), 1) for number, of in cell.rates.items()}
            print(f"{cell.kind}, {cell.load}: {medians}; last choice: {cell.choice.reason}")
    return 0 if all(row["ok"] for row in rows) else 1


def compared(cell: Cell) -> dict[str, Any]:
    number, rate = cell.best_fixed
    return {
        "name": f"{cell.kind}, {cell.load}: adaptive to best fixed ({number})",
        "ours": cell.adaptive,
        "peer": rate,
        "ratio": cell.ratio,
        "wanted": f"ratio >= {LEAST_RATIO}",
        "ok": cell.ratio >= LEAST_RATIO,
    }


def returned(kind: str, seconds: list[float | None]) -> dict[str, Any]:
    worst = None if None in seconds else max(one for one in seconds if one is not None)
    return {
        "name": f"{kind}: seconds back to all cores, at worst",
        "ours": worst,
        "peer": None,
        "ratio": None,
        "wanted": f"<= {LONGEST_RETURN_S:g}",
        "ok": worst is not None and worst <= LONGEST_RETURN_S,
    }


def print_to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
