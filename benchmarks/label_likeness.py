"""What an encoder's likeness of labels is worth where nothing was taught: accuracy and AUROC with it and without.

    python benchmarks/label_likeness.py --data DIR --record RAW.jsonl [--each 160]   asks; goes on where it stopped
    python benchmarks/label_likeness.py --report RAW.jsonl                           asks nothing

Of training parts of public sets and the examples of the presets, by `agent.confidence.labels` as requests are answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a program this file has only its own folder

from agent import presets
from agent.classification import Classifier, sorting
from agent.confidence import binomial, labels
from agent.label_likeness import LabelLikeness
from agent.likelihoods import LabelScores
from agent.types import InferenceRequest, RequestKind
from benchmarks import certificates, closed_sets
from benchmarks.certificates import Answers
from benchmarks.open_raw import MODEL, engine

EACH = 160  # examples of a set
CAPITAL = re.compile(r"(?<!^)(?=[A-Z])")  # AddToPlaylist


class Sorted(msgspec.Struct, frozen=True):
    """What was said of one example."""

    set: str
    text: str
    labels: tuple[str, ...]
    right: str
    scores: LabelScores


def examples(folder: Path, each: int) -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    """Yield set, text, labels and the right one; labels as a person would write them."""
    sets = {
        "banking77, eight intents": closed_sets.eight_intents(folder)[0],
        "snips": closed_sets.snips(folder)[0],
        "sports_understanding (bbh)": closed_sets.reasoning("sports_understanding")(folder)[0],
    }
    for name in ("intent", "triage", "moderation"):
        sets[f"preset {name}"] = [
            (one["input"], one["label"]) for one in map(json.loads, presets.preset_examples(name).splitlines())
        ]
    for name, pairs in sets.items():
        known = tuple(sorted({_written(label) for _, label in pairs}))
        for at in np.random.default_rng(3).permutation(len(pairs))[:each]:
            text, label = pairs[at]
            yield name, text, known, _written(label)


def _written(label: str) -> str:
    return CAPITAL.sub(" ", label).replace("_", " ").lower()


async def record(folder: Path, raw: Path, known: set[tuple[str, str]], each: int) -> None:
    """Ask what is not known yet."""
    async with engine() as pool:
        classifier = Classifier(pool, likeness=LabelLikeness(pool))
        with raw.open("ab") as file:
            for name, text, names, right in examples(folder, each):
                if (name, text) in known:
                    continue
                found = await classifier.run(
                    InferenceRequest(
                        id="",
                        kind=RequestKind.CLASSIFY,
                        model=MODEL,
                        messages=sorting(text, names),
                        labels=names,
                        received_at_ms=0,
                    )
                )
                if found.failure or found.label_scores is None:
                    raise RuntimeError(f"{name}: {found.failure}")
                file.write(msgspec.json.encode(Sorted(name, text, names, right, found.label_scores)) + b"\n")
                file.flush()


def read(raw: Path) -> list[Sorted]:
    return [msgspec.json.decode(line, type=Sorted) for line in raw.read_bytes().splitlines()]


def figures(rows: Sequence[Sorted]) -> Iterator[dict[str, object]]:
    """Yield one row a set and way: the model alone, with likeness, and both with the mean over the set's inputs."""
    for name in dict.fromkeys(one.set for one in rows):
        own = [one for one in rows if one.set == name]
        earlier = tuple(np.mean([one.scores.logprobs for one in own], axis=0).tolist())
        plain = [msgspec.structs.replace(one.scores, likeness=(), encoder="") for one in own]
        ways = {
            "model alone": plain,
            "with likeness": [one.scores for one in own],
            "model alone, after traffic": [msgspec.structs.replace(one, earlier=earlier) for one in plain],
            "with likeness, after traffic": [msgspec.structs.replace(one.scores, earlier=earlier) for one in own],
        }
        for way, scores in ways.items():
            chosen = [
                one.labels[labels.best(one.labels, labels.distribution(s))] for one, s in zip(own, scores, strict=True)
            ]
            right = np.array([label == one.right for one, label in zip(own, chosen, strict=True)])
            ranked = Answers(np.array([labels.score_of(s) or 0.0 for s in scores]), right)
            yield {
                "set": name,
                "way": way,
                "n": len(own),
                "labels": len(own[0].labels),
                "accuracy": float(right.mean()),
                "interval": binomial.interval(int(right.sum()), len(right)),
                "auroc": certificates.auroc(ranked) if 0 < right.sum() < len(right) else None,
                "mean score": float(ranked.scores.mean()),
            }


def main() -> int:
    parser = argparse.ArgumentParser(description="What an encoder's likeness of labels is worth.")
    parser.add_argument("--data", type=Path, help="folder with the sets, one folder each")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--each", type=int, default=EACH)
    chosen = parser.parse_args()
    if chosen.record and chosen.data:
        known = {(one.set, one.text) for one in read(chosen.record)} if chosen.record.exists() else set()
        asyncio.run(record(chosen.data, chosen.record, known, chosen.each))
    elif chosen.report:
        for row in figures(read(chosen.report)):
            print(json.dumps(row))
    else:
        parser.error("--data with --record, or --report")
    return 0


if __name__ == "__main__":
    sys.exit(main())
