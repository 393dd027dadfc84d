"""The engine beside llama-server, llama-bench and llama-cpp-python's own server: same file, same prompts, greedy.

    python scripts/llama_peer.py                              builds the peers, once
    python benchmarks/engine.py --quick [--json]              under 50 seconds
    python benchmarks/engine.py [--rounds 9] [--cells NAME,NAME] [--record FILE]
    python benchmarks/engine.py --list                        the cells
    python benchmarks/engine.py --report FILE [--write DOC]   the table of what was recorded, into a document

Contestants take turns; a ratio above 1 means that Outrider is better, whatever the unit.
Exit code 0 when all was measured, also with misses; 1 when not; 2 on wrong arguments.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a program this file has only its own folder
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "scripts"))

import llama_peer
from llama_wheel import CannotBuildError

from benchmarks import table
from benchmarks.cells import Cell, all_cells
from benchmarks.contestants import Field
from benchmarks.http_load import Refused
from benchmarks.measurement import Bench, append, read

ROUNDS = 9
QUICK_S = 43.0  # nothing begins that would end later, so that the whole stays under 50 s


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The engine beside its peers.")
    parser.add_argument("--quick", action="store_true", help="few cells and rounds, under 50 seconds")
    parser.add_argument("--json", action="store_true", help="one JSON list of rows on stdout")
    parser.add_argument("--rounds", type=_count, default=ROUNDS, help=f"rounds of each cell (default {ROUNDS})")
    parser.add_argument("--cells", type=_cells, help="only these, with commas between them; a * at the end of a name")
    parser.add_argument("--record", type=Path, help="append the figures of every round to this file of JSON lines")
    parser.add_argument("--list", action="store_true", help="print the names of the cells")
    parser.add_argument("--report", type=Path, help="measure nothing; print the table of a recorded file")
    parser.add_argument("--write", type=Path, help="put the table into this document, between its two marks")
    chosen = parser.parse_args(arguments)
    if chosen.write and not chosen.report:
        parser.error("--write needs --report: only what was recorded goes into a document")
    if chosen.list:
        for cell in all_cells().values():
            print(f"{cell.name:22} {cell.what}")
        return 0
    try:
        rows = _recorded(chosen.report) if chosen.report else _measured(chosen)
        if chosen.write:
            table.put_into(chosen.write, rows)
            return 0
    except (CannotBuildError, Refused, RuntimeError, OSError, ValueError, http.client.HTTPException) as error:
        _tell(str(error))
        return 1
    if chosen.json:
        print(json.dumps([table.as_json(row) for row in rows], indent=1))
    else:
        print(table.markdown(rows), end="")
    return 0


def _measured(chosen: argparse.Namespace) -> list[table.Row]:
    begun = time.monotonic()
    llama_peer.find()
    cells: list[Cell] = chosen.cells or list(all_cells().values())
    until = float("inf")
    if chosen.quick:
        cells = sorted((cell for cell in cells if cell.quick_rounds), key=lambda cell: cell.round_s)
        until = begun + QUICK_S
    rows: list[table.Row] = []
    spent_s = expected_s = 1.0  # how slow this machine is at this time
    with Field() as field:
        bench = Bench(field, _tell)
        for cell in cells:
            if time.monotonic() + cell.round_s * spent_s / expected_s > until:
                _tell(f"no time is left for {cell.name}")
                continue
            rounds = cell.quick_rounds if chosen.quick else chosen.rounds
            _tell(f"{cell.name}, {rounds} rounds")
            samples = bench.measure(cell, rounds, until)
            spent_s, expected_s = spent_s + bench.longest_s, expected_s + cell.round_s
            if chosen.record:
                append(chosen.record, cell, samples, bench.disturbed)
            rows += table.rows_of(cell, samples)
    return rows


def _recorded(path: Path) -> list[table.Row]:
    found, about = read(path)
    known = all_cells()
    if unknown := found.keys() - known.keys():
        raise ValueError(f"{path}: there is no cell {', '.join(sorted(unknown))} any more")
    _tell(f"{about['from']} to {about['to']}, commits {', '.join(about['commits'])}")
    _tell(f"rounds that began beside other programs: {about['disturbed']}")
    return [row for name, cell in known.items() if name in found for row in table.rows_of(cell, found[name])]


def _cells(text: str) -> list[Cell]:
    known = all_cells()
    found: dict[str, Cell] = {}
    for name in text.split(","):
        matching = [known[one] for one in known if one == name or (name.endswith("*") and one.startswith(name[:-1]))]
        if not matching:
            raise argparse.ArgumentTypeError(f"there is no cell {name!r}; --list prints them")
        found |= {cell.name: cell for cell in matching}
    return list(found.values())


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rounds")
    return int(text)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
