"""A probe of the language model's last hidden state, beside which the appraiser is looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from agent.confidence.logistic import logistic
from benchmarks import certificates
from benchmarks.certificates import Answers, Floats
from benchmarks.open_raw import key_of
from benchmarks.open_table import Figure

if TYPE_CHECKING:
    from benchmarks.open_answers import Told

PROBE_STRENGTH = 0.01  # inverse of the L2 penalty, of standardised states


def probe(path: Path, taught: Sequence[Told], asked: Sequence[Told]) -> Iterator[Figure]:
    """Tell right from wrong answers by the model's last hidden state, the same items teaching and asked."""
    known = np.load(path)

    def states(part: str, told: Sequence[Told], at: int) -> Floats:
        return np.array([known[f"{part} {key_of(one.item)}"][at] for one in told], dtype=np.float64)

    taught = [one for one in taught if f"taught {key_of(one.item)}" in known]
    asked = [one for one in asked if f"asked {key_of(one.item)}" in known]
    right = np.array([one.right for one in taught], dtype=np.int64)
    for at, where in enumerate(("the prompt's end", "the answer's end")):
        lessons, told = states("taught", taught, at), states("asked", asked, at)
        mean, scale = lessons.mean(axis=0), np.maximum(lessons.std(axis=0), 1e-6)
        weights, bias = logistic((lessons - mean) / scale, right, 2, PROBE_STRENGTH)
        scores = ((told - mean) / scale) @ (weights[1] - weights[0]) + bias[1] - bias[0]
        ranked = Answers(scores, np.array([one.right for one in asked]))
        interval = certificates.bootstrap(ranked, certificates.auroc)
        yield (
            f"AUROC, probe of the hidden state at {where}, n={len(asked)}",
            certificates.auroc(ranked),
            interval,
            "",
            None,
        )
