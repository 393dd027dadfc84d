"""How near a vector is to single taught examples, beside what a linear head says of it. Pure.

A label that is several things at once ("where is my card" and "my card never came") has no one direction; its nearest
examples tell it. Only the labels that the head finds likeliest are asked, so that a task of many labels costs little.
Vectors are kept as whole numbers of eight bits.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from operator import mul

import msgspec

ASKED = 10  # labels, the likeliest
SHARPNESS = 30.0  # of exp(sharpness * cosine), whose mean over a label's examples is its nearness
MOST_KEPT, MOST_OF_A_LABEL = 1000, 32  # examples
STEPS = 127  # of a kept number


class Neighbours(msgspec.Struct, frozen=True, kw_only=True):
    """Some of the examples of each label."""

    vectors: bytes  # signed whole numbers of 8 bits, one row an example, label by label
    scales: bytes  # float32, little-endian: what to multiply each row by to have a vector of length 1
    counts: tuple[int, ...]  # examples of each label
    weight: float  # of a nearness beside a logit


class AppliedNeighbours:
    """Made ready: its rows as numbers."""

    def __init__(self, kept: Neighbours, labels: int) -> None:
        """Raises ValueError for rows that are not of the labels' number, or not finite."""
        self._weight = kept.weight
        scales, whole = array("f", kept.scales), array("b", kept.vectors)
        width, left = divmod(len(whole), len(scales)) if scales else (0, 1)
        if left or len(kept.counts) != labels or sum(kept.counts) != len(scales) or min(kept.counts, default=-1) < 0:
            raise ValueError(f"{len(scales)} neighbours are not of {labels} labels")
        if not all(map(math.isfinite, (*scales, kept.weight))):
            raise ValueError("a figure of the neighbours is not finite")
        self._width = width
        self._rows: list[list[tuple[array[int], float]]] = []
        at = 0
        for count in kept.counts:
            rows = range(at, at + count)
            self._rows.append([(whole[row * width : (row + 1) * width], scales[row]) for row in rows])
            at += count

    def beside(self, logits: Sequence[float], vector: Sequence[float]) -> list[float]:
        """Return the logits with the nearness of each label's examples added."""
        length = math.sqrt(math.fsum(one * one for one in vector))
        if not length:
            return list(logits)
        likeliest = sorted(range(len(logits)), key=lambda label: -logits[label])[:ASKED]
        near = {label: self._nearness(label, vector, length) for label in likeliest if self._rows[label]}
        least = min(near.values(), default=0.0)
        return [logit + self._weight * near.get(label, least) for label, logit in enumerate(logits)]

    def _nearness(self, label: int, vector: Sequence[float], length: float) -> float:
        cosines: list[float] = [sum(map(mul, row, vector)) * scale / length for row, scale in self._rows[label]]
        top = max(cosines)
        mean = math.fsum(math.exp(SHARPNESS * (one - top)) for one in cosines) / len(cosines)
        return SHARPNESS * top + math.log(mean)
