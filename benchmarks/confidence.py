"""What a confidence is worth: taught heads on public sets, and the promises of `outrider calibrate` over many draws.

    python benchmarks/confidence.py --data DIR --quick [--json]     about 35 s of processor time
    python benchmarks/confidence.py --data DIR [--draws 400] [--write docs/confidence.md]
    python benchmarks/confidence.py --data DIR --api [--write ...]  only what a request costs: wants an idle machine
    python benchmarks/confidence.py --data DIR --record RAW.jsonl   asks the language model for written answers
    python benchmarks/confidence.py --data DIR --report RAW.jsonl   with the figures of those; asks nothing

DIR has one folder a set (banking77, snips, bbh). Every figure is of answers to examples that taught
nothing. ``--write`` puts the tables into a document, between its two marks. Exit code 0 when all
was measured, also with misses; 1 when not; 2 on wrong arguments.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a program this file has only its own folder
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes measure side by side

from benchmarks import label_latency
from benchmarks.closed_labels import Job, measured
from benchmarks.closed_sets import EIGHT, HARD, PARTS, eight_intents
from benchmarks.rows import Row, as_json, markdown, summary

DRAWS, QUICK_DRAWS = 400, 200
QUICK_TESTED = 1200  # test examples of a set
BEGIN, END = "<!-- confidence: begin -->", "<!-- confidence: end -->"
API_BEGIN, API_END = "<!-- api: begin -->", "<!-- api: end -->"


def through_the_api(folder: Path) -> Iterator[Row]:
    """What one closed-label request costs through the daemon's API, by a head and by the language model."""
    train, test = eight_intents(folder)
    chosen = [pair for label in EIGHT for pair in [one for one in train if one[1] == label][:10]]
    by_head, by_model = label_latency.costs(chosen, [text for text, _ in test], EIGHT)
    name = "banking77, eight intents, through the API"
    yield Row(name, "by a head: median, ms", by_head.p50_ms)
    yield Row(name, "by a head: p99, ms", by_head.p99_ms, None, "at most 20", by_head.p99_ms <= 20)
    yield Row(name, "by the language model: median, ms", by_model.p50_ms)
    yield Row(name, "by a head: processor time, ms", by_head.cpu_ms)
    yield Row(name, "by the language model: processor time, ms", by_model.cpu_ms)
    ratio = by_model.cpu_ms / by_head.cpu_ms
    yield Row(name, "times cheaper than the language model", ratio, None, "at least 5", ratio >= 5, 1.0)


def closed_labels(data: Path, most: int, draws: int, *, quick: bool) -> tuple[list[Row], list[str]]:
    """Measure the sets in two processes: the largest one, and all others. Returns rows, and what is not there."""
    largest, *others = [part.name for part in PARTS]
    jobs = [
        Job((largest,), (), not quick, data, most, draws),
        Job(tuple(others), HARD[:1] if quick else HARD, not quick, data, most, draws),
    ]
    with ProcessPoolExecutor(len(jobs), mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(measured, jobs))
    return [row for rows, _ in found for row in rows], [what for _, absent in found for what in absent]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What a confidence is worth.")
    parser.add_argument("--data", type=Path, required=True, help="folder with the sets, one folder each")
    parser.add_argument(
        "--quick", action="store_true", help="fewer draws and test examples, about 35 s of processor time"
    )
    parser.add_argument("--api", action="store_true", help="only what a request costs through the API; a minute, idle")
    parser.add_argument("--json", action="store_true", help="one JSON list of rows on stdout")
    parser.add_argument(
        "--draws", type=int, default=0, help=f"draws of examples (default {DRAWS}, quick {QUICK_DRAWS})"
    )
    parser.add_argument(
        "--record", type=Path, help="record the answers of the open sets in this file, and report nothing"
    )
    parser.add_argument("--report", type=Path, help="report the open sets, too, from this file")
    parser.add_argument("--write", type=Path, help="put the table into this document, between its two marks")
    chosen = parser.parse_args(arguments)
    if chosen.record:
        from benchmarks.open_raw import record_all

        return record_all(chosen.data, chosen.record)
    marks, absent = (BEGIN, END), list[str]()
    if chosen.api:
        rows, marks = list(through_the_api(chosen.data)), (API_BEGIN, API_END)
    else:
        draws = chosen.draws or (QUICK_DRAWS if chosen.quick else DRAWS)
        most = QUICK_TESTED if chosen.quick else 100_000
        rows, absent = closed_labels(chosen.data, most, draws, quick=chosen.quick)
        if chosen.report:
            from benchmarks import open_answers, open_table

            told = list(open_answers.all_figures(chosen.data, chosen.report, draws))
            if chosen.write:
                open_table.written(chosen.write, told)
            else:
                rows += [Row(name, *figure) for name, figure in told]
    for row in rows:
        if row.ok is False:
            print(f"missed: {row.set}: {row.what}: {row.value:.3f}, wanted {row.wanted}", file=sys.stderr)
    if chosen.write:
        begin, end = marks
        table = markdown(rows) if chosen.api else f"{summary(rows)}\n{markdown(rows)}"
        before, _, rest = chosen.write.read_text(encoding="utf-8").partition(begin)
        chosen.write.write_text(f"{before}{begin}\n{table}{end}{rest.partition(end)[2]}", encoding="utf-8")
    elif chosen.json:
        print(json.dumps([as_json(row) for row in rows], indent=1))
    else:
        print(markdown(rows), end="")
    for what in absent:
        print(f"left out: {what}", file=sys.stderr)
    return 1 if absent else 0


if __name__ == "__main__":
    sys.exit(main())
