"""How like the input each label of a request is, by the vectors of the embedded encoder.

It helps where nothing was taught: a small language model knows less of what labels mean than an
encoder made for that. The vectors of labels are kept: a stream of requests with the same ones
costs one vector each.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from operator import mul
from typing import NamedTuple, Protocol

from agent.scores import Vectors

ENCODER = "minilm-l6-v2-int8"
MOST_KEPT = 1024  # vectors of labels, of about 1.5 KiB


class Embedding(Protocol):
    """Where texts become vectors. Problems end in ``failure``, they do not raise."""

    async def embed(self, model: str, texts: Sequence[str], *, deadline_at_ms: int | None = None) -> Vectors: ...


class Likeness(NamedTuple):
    """Of an input to each of some labels."""

    figures: tuple[float, ...] = ()  # cosines, -1..1, in the order of the labels; empty: nothing is known
    encoder_digest: str = ""
    duration_ms: float = 0.0


def label_texts(labels: Sequence[str], descriptions: Mapping[str, str]) -> list[str]:
    """Return the labels as a reader would write them, in their order: what they are called says what they are."""
    named = [(label.replace("_", " "), descriptions.get(label, "")) for label in labels]
    return [f"{name}: {told}" if told else name for name, told in named]


def likeness(vector: Sequence[float], of_labels: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return the cosine of a vector with each of others; all are of length 1."""
    return tuple(sum(map(mul, vector, row)) for row in of_labels)


class LabelLikeness:
    """Compares inputs with labels."""

    def __init__(self, engine: Embedding) -> None:
        self._engine = engine
        self._digest = ""
        self._kept: OrderedDict[bytes, array[float]] = OrderedDict()

    async def of(self, text: str, labels: Sequence[str], *, deadline_at_ms: int | None = None) -> Likeness:
        """Return the likeness of a text to each label; nothing where no encoder is at hand or it fails."""
        keys = [hashlib.sha256(label.encode()).digest() for label in labels]
        known = {key: self._kept[key] for key in keys if key in self._kept}
        missing = {key: label for key, label in zip(keys, labels, strict=True) if key not in known}
        found = await self._engine.embed(ENCODER, [text, *missing.values()], deadline_at_ms=deadline_at_ms)
        if found.failure or not found.vectors:
            return Likeness(duration_ms=found.duration_ms)
        if known and found.model_digest != self._digest:  # another encoder came into its place
            self._kept.clear()
            return await self.of(text, labels, deadline_at_ms=deadline_at_ms)
        self._digest = found.model_digest
        vector, *of_labels = found.vectors
        known |= {key: array("f", row) for key, row in zip(missing, of_labels, strict=True)}
        self._keep(known)
        figures = likeness(vector, [known[key] for key in keys])
        return Likeness(figures, found.model_digest, found.duration_ms)

    def _keep(self, vectors: Mapping[bytes, array[float]]) -> None:
        for key, vector in vectors.items():
            self._kept[key] = vector
            self._kept.move_to_end(key)
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
