"""Public sets of closed labels: how each is read, and how many of its examples teach."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks import certificates

EIGHT = (
    "activate_my_card", "age_limit", "atm_support", "automatic_top_up", "card_arrival", "exchange_rate",
    "lost_or_stolen_card", "terminate_account",
)  # fmt: skip

Pairs = list[tuple[str, str]]  # text, label


class Part(NamedTuple):
    """A set, how many examples of each label teach, and what accuracy is wanted."""

    name: str
    read: Callable[[Path], tuple[Pairs, Pairs]]
    per_label: int
    wanted: float | None


def banking(folder: Path) -> tuple[Pairs, Pairs]:
    found = []
    for name in ("train.csv", "test.csv"):
        with (folder / "banking77" / name).open(encoding="utf-8") as file:
            found.append([(row["text"], row["category"]) for row in csv.DictReader(file)])
    return found[0], found[1]


def eight_intents(folder: Path) -> tuple[Pairs, Pairs]:
    train, test = banking(folder)
    return [pair for pair in train if pair[1] in EIGHT], [pair for pair in test if pair[1] in EIGHT]


def snips(folder: Path) -> tuple[Pairs, Pairs]:
    def part(name: str) -> Pairs:
        texts, labels = (
            (folder / "snips" / name / kind).read_text(encoding="utf-8").splitlines() for kind in ("seq.in", "label")
        )
        return [(text.strip(), label.strip()) for text, label in zip(texts, labels, strict=True)]

    return part("train"), [*part("valid"), *part("test")]


def reasoning(name: str) -> Callable[[Path], tuple[Pairs, Pairs]]:
    """Return how a set of BIG-Bench Hard is read: two labels, and vectors of a sentence that say little of which."""

    def read(folder: Path) -> tuple[Pairs, Pairs]:
        found = json.loads((folder / "bbh" / f"{name}.json").read_text(encoding="utf-8"))["examples"]
        pairs = [(one["input"], one["target"]) for one in found]
        pairs = [pairs[i] for i in certificates.shuffled(len(pairs))]
        return pairs[:100], pairs[100:]

    return read


HARD = ("sports_understanding", "navigate", "formal_fallacies")  # tasks that these heads cannot do
PARTS = (
    Part("banking77, 10 a label", banking, 10, 0.85),
    Part("banking77, eight intents, 25 a label", eight_intents, 25, 0.97),
    Part("snips, 100 in all", snips, 15, 0.89),
)
