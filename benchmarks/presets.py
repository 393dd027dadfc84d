"""What the presets find and what they flag without need: taught with what ships, asked what was written apart from it.

    python benchmarks/presets.py --data DIR [--features auto] [--json] [--write docs/tasks.md] [--tagger FOLDER]

DIR holds public sets: banking77, snips and gsm8k for harmless text, presidio_pii for personal data. ``--tagger`` is the
folder of an ONNX model that tags names. Exit code 0 when measured; 1 when a set is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import httpx2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a program this file has only its own folder
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "scripts"))

from agent.confidence.binomial import interval
from agent.presets import NAMES
from benchmarks.contestants import Outrider

HERE = Path(__file__).resolve().parent
MARKS = ("<!-- presets: begin -->\n", "<!-- presets: end -->")
FINE = "fine"  # the label of moderation that passes
HARMLESS = {"banking77": 200, "snips": 150, "gsm8k": 150}  # texts of each


class Figure(NamedTuple):
    """A share of some texts."""

    name: str
    found: int
    of: int


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What the presets find and flag.")
    parser.add_argument("--data", type=Path, required=True, help="folder with the public sets")
    parser.add_argument("--features", default="auto", help="as of `outrider tasks teach`")
    parser.add_argument("--json", action="store_true", help="one JSON list of rows on stdout")
    parser.add_argument("--write", type=Path, help="put the table into this document, between its two marks")
    parser.add_argument("--tagger", type=Path, help="folder of an ONNX model that tags names")
    chosen = parser.parse_args(arguments)
    try:
        figures = list(_measured(chosen))
    except OSError as error:
        print(f"a set is missing: {error}", file=sys.stderr)
        return 1
    if chosen.json:
        print(json.dumps([figure._asdict() for figure in figures], indent=1))
    else:
        print(_markdown(figures), end="")
    if chosen.write:
        before, _, rest = chosen.write.read_text(encoding="utf-8").partition(MARKS[0])
        text = before + MARKS[0] + _markdown(figures) + MARKS[1] + rest.partition(MARKS[1])[2]
        chosen.write.write_text(text, encoding="utf-8")
    return 0


def _measured(chosen: argparse.Namespace) -> Iterator[Figure]:
    harmless = [text for name, count in HARMLESS.items() for text in _texts(chosen.data, name)[:count]]
    if chosen.tagger:
        yield from _names(chosen.tagger, chosen.data)
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(Outrider(Path(folder))) as daemon:
        for preset in NAMES:
            examples = json.loads(_outrider(folder, "tasks", "new", "--preset", preset, "--json"))["examples"]
            told = json.loads(
                _outrider(folder, "tasks", "teach", preset, examples, "--features", chosen.features, "--json")
            )
            feature = told["feature"]
            yield Figure(
                f"{preset}, reads {feature}: right out of fold",
                round(told["accuracy"] * told["taught"]),
                told["taught"],
            )
            rows = [json.loads(line) for line in (HERE / "presets" / f"{preset}.jsonl").read_text().splitlines()]
            answers = [_label(daemon, preset, row["input"]) for row in rows]
            yield Figure(
                f"{preset}: right", sum(a == row["label"] for a, row in zip(answers, rows, strict=True)), len(rows)
            )
            for label in dict.fromkeys(row["label"] for row in rows):
                pairs = [(a, row["label"]) for a, row in zip(answers, rows, strict=True)]
                own = [a for a, right in pairs if right == label]
                yield Figure(f"{preset}: {label} found", own.count(label), len(own))
                others = [a for a, right in pairs if right != label]
                yield Figure(f"{preset}: {label} said of others", others.count(label), len(others))
            if preset == "moderation":
                bad = [a for a, row in zip(answers, rows, strict=True) if row["label"] != FINE]
                yield Figure("moderation: forbidden text is flagged", len(bad) - bad.count(FINE), len(bad))
                told_of = [_label(daemon, preset, text) for text in harmless]
                sets = ", ".join(HARMLESS)
                yield Figure(
                    f"moderation: harmless text is flagged ({sets})", len(told_of) - told_of.count(FINE), len(told_of)
                )


def _label(daemon: Outrider, task: str, text: str) -> str:
    """Return the likeliest label, sure or not."""
    address = daemon.address
    url = f"http://{address.host}:{address.port}/v1/classify"
    body = {"task": task, "input": text, "outrider": {"on_low_confidence": "draft"}}
    answer = httpx2.post(url, json=body, headers=address.headers, timeout=600).raise_for_status().json()
    label: str = answer["label"]
    return label


def _outrider(folder: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "agent", "--config", str(Path(folder) / "outrider.toml"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"outrider {' '.join(arguments)}: {done.stderr.strip()[-500:]}")
    return done.stdout


def _texts(data: Path, name: str) -> list[str]:
    """Return texts of a set, spread over it."""
    if name == "banking77":
        with (data / name / "test.csv").open(encoding="utf-8") as file:
            found = [row[0] for row in csv.reader(file)][1:]
    elif name == "gsm8k":
        found = [json.loads(line)["question"] for line in (data / name / "test.jsonl").read_text().splitlines()]
    else:
        found = (data / name / "test" / "seq.in").read_text(encoding="utf-8").splitlines()
    step = max(1, len(found) // HARMLESS[name])
    return found[::step]


def _names(folder: Path, data: Path) -> Iterator[Figure]:
    """Names of persons that a tagger finds whole, and sentences without any personal data in which it finds something."""
    from agent.batch import open_encoder

    items = json.loads((data / "presidio_pii" / "synth_dataset_v2.json").read_text(encoding="utf-8"))
    with open_encoder(folder) as tagger:
        tags = tagger.tag([item["full_text"] for item in items], truncate=True)
    found = there = plain = flagged = 0
    for item, spans in zip(items, tags, strict=True):
        covered = {at for span in spans for at in range(span.start, span.end)}
        for span in item["spans"]:
            if span["entity_type"] == "PERSON":
                there += 1
                letters = range(span["start_position"], span["end_position"])
                found += all(at in covered or not item["full_text"][at].isalnum() for at in letters)
        if not item["spans"]:
            plain, flagged = plain + 1, flagged + bool(spans)
    yield Figure("names by a tagger (presidio_pii): found whole", found, there)
    yield Figure("names by a tagger: sentences without personal data in which it finds something", flagged, plain)


def _markdown(figures: Sequence[Figure]) -> str:
    lines = ["| What | Share | 95 % interval | n |", "|---|---:|---|---:|"]
    for name, found, of in figures:
        low, high = interval(found, of)
        lines.append(f"| {name} | {found / of:.1%} | {low:.1%} to {high:.1%} | {of} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
