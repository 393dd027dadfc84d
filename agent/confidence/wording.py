"""What a text is worded like: counts of its words, pairs of words and pieces of words, folded into a few buckets. Pure.

A vector of an encoder says what a text means, and loses which words said it; "play", "rate" and "book" tell some tasks
better than any meaning. Folding is the hashing trick (Weinberger et al., ICML 2009, arXiv 0902.2206), and what is rare
counts more (inverse document frequency, of the texts that taught). No word is kept.
"""

from __future__ import annotations

import math
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from operator import mul

import msgspec

BUCKETS = 1024
PIECES = (3, 4)  # characters of a word, its ends included
LONGEST = 8_000  # characters that are read, from the beginning
_WORD = re.compile(r"\w+")
_SIGN = 1 << 20  # a bit of the hash that no bucket is told by


class Wording(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a head: what each bucket says for each label."""

    rarity: bytes  # float32, little-endian, one a bucket: how much it counts
    weights: bytes  # the same, one row a label


class AppliedWording:
    """Made ready: its figures as numbers."""

    def __init__(self, wording: Wording, labels: int) -> None:
        """Raises ValueError for figures that are not of the labels' number, or not finite."""
        self._rarity, weights = _numbers(wording.rarity), _numbers(wording.weights)
        if len(self._rarity) != BUCKETS or len(weights) != BUCKETS * labels:
            raise ValueError(f"a wording of {len(weights)} weights is not of {labels} labels")
        # One row a bucket: a text has few of them.
        self._columns = [tuple(weights[bucket::BUCKETS]) for bucket in range(BUCKETS)]
        self._labels = labels

    def logits(self, text: str) -> list[float]:
        """Return what the words of a text say for each label."""
        found = weighed(folded(text), self._rarity)
        if not found:
            return [0.0] * self._labels
        values = list(found.values())
        rows = zip(*(self._columns[bucket] for bucket in found), strict=True)
        return [sum(map(mul, row, values)) for row in rows]


def folded(text: str) -> dict[int, float]:
    """Return the buckets that a text has something in: the sum of 1 + log(count) of what is there, with its sign."""
    found: dict[int, float] = {}
    for part, count in Counter(_parts(text[:LONGEST].casefold())).items():
        number = zlib.crc32(part.encode("utf-8", "surrogatepass"))
        much = 1.0 + math.log(count)
        bucket = number % BUCKETS
        found[bucket] = found.get(bucket, 0.0) + (much if number & _SIGN else -much)
    return found


def weighed(found: dict[int, float], rarity: Sequence[float]) -> dict[int, float]:
    """Return the same weighed by how rare each bucket is, of length 1; empty where nothing counts."""
    values = {bucket: much * rarity[bucket] for bucket, much in found.items() if rarity[bucket]}
    length = math.sqrt(math.fsum(value * value for value in values.values()))
    return {bucket: value / length for bucket, value in values.items()} if length else {}


def rarity_of(texts: Sequence[dict[int, float]]) -> list[float]:
    """Return how much each bucket counts, by these texts: 0 for what none of them has."""
    having = Counter(bucket for text in texts for bucket in text)
    return [
        max(0.0, math.log((len(texts) + 1) / (having[bucket] + 0.5))) if having[bucket] else 0.0
        for bucket in range(BUCKETS)
    ]


def _parts(text: str) -> Iterator[str]:
    words = _WORD.findall(text)
    for word in words:
        yield f"w:{word}"
        whole = f"<{word}>"
        for length in PIECES:
            for begin in range(len(whole) - length + 1):
                yield whole[begin : begin + length]
    for one, other in pairwise(words):
        yield f"b:{one} {other}"


def _numbers(raw: bytes) -> array[float]:
    numbers = array("f")
    numbers.frombytes(raw)
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a figure of a wording is not finite")
    return numbers
