"""Facts hidden at several depths of a long prompt: how much of its context a model really uses.

All facts of a length are in one prompt and are asked for one after the other, so that the
beginning is computed once; each is a distraction from the others.
"""

from __future__ import annotations

import msgspec

from agent.types import Message

ANSWER_TOKENS = 16
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
PROBE_SENTENCES = 4
_ROOM_TOKENS = 64  # for question, template and answer
_SENTENCES = (
    "The road runs along the river and past the old mill.",
    "In autumn the leaves lie deep on the path to the well.",
    "Nobody knows who built the wall behind the garden.",
    "Every evening the baker puts his empty baskets in front of the door.",
    "The cat of the neighbour sleeps on the bench by the window.",
    "On clear days one can see the mountains from the upper field.",
    "The children count the boats when the wind comes from the west.",
    "A letter that is sent in the morning arrives the next day.",
)
_FACTS = (
    ("the school", "4713", 0.1),
    ("the library", "8290", 0.3),
    ("the station", "3658", 0.5),
    ("the harbour", "9174", 0.7),
    ("the museum", "5026", 0.9),
)


class Question(msgspec.Struct, frozen=True):
    """A whole prompt and what its answer has to hold."""

    messages: tuple[Message, ...]
    answer: str
    depth: float


def probes() -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """Return two prompts, one ``PROBE_SENTENCES`` longer than the other: how many tokens has a sentence?"""
    short, long = _filler(1), _filler(1 + PROBE_SENTENCES)
    return (Message("user", " ".join(short)),), (Message("user", " ".join(long)),)


def _filler(count: int) -> list[str]:
    return [_SENTENCES[(5 * at + at // len(_SENTENCES)) % len(_SENTENCES)] for at in range(count)]


def questions(length: int, tokens_per_sentence: float) -> list[Question]:
    """Return one question per fact, all with the same beginning of about ``length`` tokens."""
    count = max(1, int((length - _ROOM_TOKENS) / tokens_per_sentence) - len(_FACTS))
    sentences = _filler(count)
    for place, code, depth in reversed(_FACTS):
        sentences.insert(int(count * depth), f"The code for {place} is {code}.")
    story = " ".join(sentences)
    return [
        Question(
            (Message("user", f"{story}\n\nWhat is the code for {place}? Answer with the number only."),), code, depth
        )
        for place, code, depth in _FACTS
    ]
