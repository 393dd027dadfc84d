"""What an encoder is asked for, and how its outputs are read. Values, and what the usual files say of them; pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

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


def spec_of_files(config: Mapping[str, Any], pooling: Mapping[str, Any]) -> EncoderSpec:
    """Return what config.json and sentence-transformers' 1_Pooling/config.json say; empty where there is none.

    Raises ValueError for labels that are not numbered from 0 on, and for another pooling than those above.
    """
    names = config.get("architectures")
    architecture = str(names[0]) if isinstance(names, list) and names else ""
    if architecture.endswith("ForTokenClassification"):
        return EncoderSpec(task=EncoderTask.TAG)
    if architecture.endswith("ForSequenceClassification"):
        several = config.get("problem_type") == "multi_label_classification"
        single = len(labels(config)) == 1 or config.get("num_labels") == 1
        return EncoderSpec(task=EncoderTask.RERANK if single else EncoderTask.CLASSIFY, several=several)
    if pooling.get("pooling_mode_cls_token"):
        return EncoderSpec(pooling=Pooling.CLS)
    if pooling.get("pooling_mode_lasttoken"):
        return EncoderSpec(pooling=Pooling.LAST)
    other = [name for name, on in pooling.items() if name.startswith("pooling_mode_") and on]
    if other and other != ["pooling_mode_mean_tokens"]:
        raise ValueError(f"the pooling is {', '.join(other)}; there are mean, cls and last token")
    return EncoderSpec()


def labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the labels of config.json in their order; none where it has none. Raises ValueError as above."""
    found = config.get("id2label")
    if not isinstance(found, dict):
        return ()
    try:
        return tuple(str(found[str(number)]) for number in range(len(found)))
    except KeyError as error:
        raise ValueError(f"id2label of config.json has no label {error}: they are numbered from 0 on") from None
