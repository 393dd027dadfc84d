"""Whether a vector is like those that taught a head: the gate before a verdict on what it never saw. Pure.

Kept is the mean direction of each label's vectors, and how near to the nearest of them the taught ones are:
the cosine that all but one in fifty of them reach, each measured against means that it is no part of.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from operator import mul

import msgspec

ALLOWED_OUTSIDE = 0.02  # of the taught vectors


class Familiarity(msgspec.Struct, frozen=True):
    """``centres``: unit vectors, float32, little-endian, row by row. ``reach``: the least cosine to one of them."""

    centres: bytes
    reach: float

    def holds(self, vector: Sequence[float]) -> bool:
        """Return whether a vector is as near to a centre as those that taught the head; false for no number."""
        length = math.sqrt(math.fsum(one * one for one in vector))
        if not math.isfinite(length) or length == 0.0:
            return False
        numbers = array("f")
        numbers.frombytes(self.centres)
        width = len(vector)
        if len(numbers) % width:
            return False
        cosines = (sum(map(mul, numbers[at : at + width], vector)) / length for at in range(0, len(numbers), width))
        return max(cosines, default=-1.0) >= self.reach
