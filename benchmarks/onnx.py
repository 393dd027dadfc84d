"""The ONNX side beside its peers: models that write, encoders, and the daemon's /v1/embeddings.

    python scripts/peer_environment.py torch                 makes the peer's environment, once
    python scripts/encoder_gguf.py                           makes the encoder a file for llama-server, once
    python benchmarks/onnx.py --quick [--json]               under 50 seconds
    python benchmarks/onnx.py [--rounds 5] [--parts NAME,NAME] [--record FILE] [--write DOC]
    python benchmarks/onnx.py --report FILE [--write DOC]    the table of what was recorded, in pieces or at once
    python benchmarks/onnx.py --list                         the parts

A ratio above 1 means that Outrider is better, whatever the unit. ``--write`` puts the table into
a document, between its two marks. Exit code 0 when all was measured, also with
misses; 1 when not, or when a peer is not installed; 2 on wrong arguments.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.append(sys.path.pop(0))  # with its own folder first this program would be the package onnx to all others
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "scripts"))

from llama_wheel import CannotBuildError

from benchmarks import encoder_cells, onnx_generation, table
from benchmarks.encoder_cells import Part

ROUNDS, QUICK_ROUNDS = 5, 2
QUICK_BEGIN_S = 36.0  # a part that would begin later is left out of the short run
QUICK_FIRST = ("embeddings-load", "encoder-torch")  # what something is wanted of
PARTS: list[Part] = [*onnx_generation.parts(), *encoder_cells.parts()]
BEGIN, END = "<!-- onnx: begin -->", "<!-- onnx: end -->"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The ONNX side beside its peers.")
    parser.add_argument("--quick", action="store_true", help="few rounds, under 50 seconds")
    parser.add_argument("--json", action="store_true", help="one JSON list of rows on stdout")
    parser.add_argument("--rounds", type=int, default=0, help=f"rounds of each part (default {ROUNDS})")
    parser.add_argument("--parts", default="", help="only these, with commas between them")
    parser.add_argument("--list", action="store_true", help="print the names of the parts")
    parser.add_argument(
        "--record", type=Path, help="keep the rows in this file, in the place of the same parts' earlier ones"
    )
    parser.add_argument("--report", type=Path, help="measure nothing; take the rows of a recorded file")
    parser.add_argument("--write", type=Path, help="put the table into this document, between its two marks")
    chosen = parser.parse_args(arguments)
    known = {part.name: part for part in PARTS}
    names = [name for name in chosen.parts.split(",") if name] or list(known)
    if unknown := set(names) - known.keys():
        parser.error(f"there is no part {', '.join(sorted(unknown))}; --list prints them")
    if chosen.list:
        for part in PARTS:
            print(f"{part.name:22} {part.what}")
        return 0
    found, code = (_recorded(chosen.report), 0) if chosen.report else _measured(chosen, [known[name] for name in names])
    if chosen.record:
        kept = (_recorded(chosen.record) if chosen.record.exists() else {}) | found
        chosen.record.write_text(json.dumps(kept, indent=1), encoding="utf-8")
    rows = [row for name in known for row in found.get(name, [])]
    if chosen.write:
        table.put_into(chosen.write, rows, begin=BEGIN, end=END)
    elif chosen.json:
        print(json.dumps([table.as_json(row) for row in rows], indent=1))
    else:
        print(table.markdown(rows), end="")
    return code


def _measured(chosen: argparse.Namespace, parts: list[Part]) -> tuple[dict[str, list[table.Row]], int]:
    """Return the rows by part, and the exit code."""
    begun = time.monotonic()
    rounds = chosen.rounds or (QUICK_ROUNDS if chosen.quick else ROUNDS)
    found: dict[str, list[table.Row]] = {}
    code = 0
    if chosen.quick:
        parts = sorted(parts, key=lambda part: part.name not in QUICK_FIRST)
    for part in parts:
        if chosen.quick and time.monotonic() - begun > QUICK_BEGIN_S:
            print(f"no time is left for {part.name}", file=sys.stderr, flush=True)
            continue
        print(f"{part.name}, {rounds} rounds", file=sys.stderr, flush=True)
        try:
            found[part.name] = list(part.run(rounds, chosen.quick))
        except (CannotBuildError, RuntimeError, OSError) as error:
            print(f"{part.name} is left out: {error}", file=sys.stderr, flush=True)
            code = 1
    return found, code


def _recorded(path: Path) -> dict[str, list[table.Row]]:
    recorded = json.loads(path.read_text(encoding="utf-8"))
    return {name: [table.Row(*row) for row in rows] for name, rows in recorded.items()}


if __name__ == "__main__":
    sys.exit(main())
