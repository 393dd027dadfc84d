"""What an encoder is asked for, and how its outputs are read. Values only."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta


class EncoderTask(StrEnum):
    """What an encoder was made for; it does nothing else."""

    EMBED = "embed"  # a vector of a text
    CLASSIFY = "classify"  # which of its labels fits a text
    TAG = "tag"  # which of its labels fits each piece of a text
    RERANK = "rerank"  # how well a text answers a query


class Pooling(StrEnum):
    """How the vectors of its tokens become the one of a text."""

    MEAN = "mean"
    CLS = "cls"  # that of the first token
    LAST = "last"  # that of the last token
    NONE = "none"  # the model gives one vector a text by itself


class EncoderSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the files of an encoder do not say all by themselves."""

    task: EncoderTask = EncoderTask.EMBED
    pooling: Pooling = Pooling.MEAN
    normalized: bool = True  # vectors of length 1
    inputs: tuple[str, ...] = ()  # exactly those that the graph must declare; empty: whichever are known
    output: str = ""  # what is read; empty: the first that fits
    labels: tuple[str, ...] = ()  # in the order of the outputs; empty: id2label of config.json
    several: bool = False  # whether more than one label may fit
    dimensions: tuple[Annotated[int, Meta(ge=1)], ...] = ()  # shorter vectors that it was trained for (Matryoshka)
