"""What the detectors of personal data find, miss and alter without need.

    python benchmarks/redaction.py --data DIR [--write docs/egress.md] [--quick] [--json]

DIR holds folders of public sets: presidio_pii (labelled), and for text without personal data
banking77, gsm8k, wikitext2. Exit code 0 when measured, also with misses; 1 when a set is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a program this file has only its own folder

from agent.escalation.detectors import find

WANTED = {
    "EMAIL_ADDRESS": 1.0,
    "CREDIT_CARD": 1.0,
    "IBAN_CODE": 1.0,
    "IP_ADDRESS": 1.0,
    "US_SSN": 0.99,
    "PHONE_NUMBER": 0.95,
    "PERSON": None,  # has no form that could be checked: stated, not hidden
    "STREET_ADDRESS": None,
}
PLAIN = ("banking77", "gsm8k", "wikitext2")
LONGEST = 4000
MARKS = ("<!-- redaction -->\n", "<!-- /redaction -->")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Detectors of personal data on labelled text.")
    parser.add_argument("--data", type=Path, required=True, help="folder with the public sets")
    parser.add_argument("--quick", action="store_true", help="a tenth of the text without personal data")
    parser.add_argument("--json", action="store_true", help="one JSON list of rows on stdout")
    parser.add_argument("--write", type=Path, help="put the table into this document, between its two marks")
    chosen = parser.parse_args(arguments)
    try:
        rows = [*_labelled(chosen.data), *_unlabelled(chosen.data, every=10 if chosen.quick else 1)]
    except OSError as error:
        print(f"a set is missing: {error}", file=sys.stderr)
        return 1
    if chosen.json:
        print(json.dumps(rows, indent=1))
    else:
        print(_markdown(rows), end="")
    if chosen.write:
        text = chosen.write.read_text(encoding="utf-8")
        before, _, rest = text.partition(MARKS[0])
        chosen.write.write_text(
            before + MARKS[0] + _markdown(rows) + MARKS[1] + rest.partition(MARKS[1])[2], encoding="utf-8"
        )
    return 0


def _labelled(data: Path) -> Iterator[dict[str, Any]]:
    """Whole values found, by kind; and sentences without any labelled kind of ours that are altered."""
    found: Counter[str] = Counter()
    there: Counter[str] = Counter()
    plain, altered = 0, 0
    for item in json.loads((data / "presidio_pii" / "synth_dataset_v2.json").read_text(encoding="utf-8")):
        pieces = find(item["full_text"])
        kinds = {span["entity_type"] for span in item["spans"]}
        for span in item["spans"]:
            if span["entity_type"] in WANTED:
                there[span["entity_type"]] += 1
                start, end = span["start_position"], span["end_position"]
                found[span["entity_type"]] += any(piece.start <= start and end <= piece.end for piece in pieces)
        if not kinds:
            plain, altered = plain + 1, altered + bool(pieces)
    for kind, wanted in WANTED.items():
        yield _row(f"presidio_pii {kind}: found", found[kind], there[kind], wanted)
    yield _altered("presidio_pii, sentences without any label: altered", altered, plain)


def _unlabelled(data: Path, *, every: int) -> Iterator[dict[str, Any]]:
    for name in PLAIN:
        lines = [
            line[:LONGEST]
            for path in sorted((data / name).iterdir())
            if path.suffix in {".csv", ".json", ".jsonl", ".txt", ".tokens", ".raw"}
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
            if line.strip()
        ][::every]
        yield _altered(f"{name}, lines: altered", sum(bool(find(line)) for line in lines), len(lines))


def _row(name: str, hits: int, of: int, wanted: float | None) -> dict[str, Any]:
    share = hits / of if of else 0.0
    row = {"name": name, "ours": hits, "peer": of, "ratio": round(share, 4)}
    return row | {"wanted": "" if wanted is None else f">= {wanted:g}", "ok": wanted is None or share >= wanted}


def _altered(name: str, hits: int, of: int) -> dict[str, Any]:
    share = hits / of if of else 0.0
    return {"name": name, "ours": hits, "peer": of, "ratio": round(share, 4), "wanted": "<= 0.02", "ok": share <= 0.02}


def _markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["| What | Pieces | Of | Share | Wanted | |", "|---|---:|---:|---:|---|---|"]
    for row in rows:
        verdict = "" if not row["wanted"] else "ok" if row["ok"] else "**missed**"
        lines.append(
            f"| {row['name']} | {row['ours']} | {row['peer']} | {row['ratio']:.2%} | {row['wanted']} | {verdict} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
