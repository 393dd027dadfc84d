"""What is asked: texts of known lengths, different in every round, the same for all contestants."""

from __future__ import annotations

import random

# Common English words, each one token of the model's vocabulary when a space stands before it.
_TEXT = (
    "time people way water day part place work world life hand home school room house story book night line end city "
    "tree road light river field food horse stone paper music table letter garden window morning evening summer winter "
    "mother father brother sister friend family child teacher doctor money market street village country mountain ocean "
    "island forest animal bird fish flower king war peace power voice heart mind body face eye name word number side "
    "small large long short old new good bad high low early late open clear strong deep green white black red blue"
)
WORDS = tuple(_TEXT.split())
TOPICS = (
    "a lighthouse keeper",
    "the history of paper",
    "a journey by train",
    "how bread is made",
    "a garden in spring",
    "the first winter",
    "an old map",
    "two brothers",
)
LABELS_10 = (
    "request refund",
    "lost card",
    "top up",
    "exchange rate",
    "change address",
    "close account",
    "card not working",
    "transfer pending",
    "verify identity",
    "fees charged",
)
_SUBJECTS = (
    *("card", "account", "transfer", "payment", "refund", "exchange"),
    *("statement", "address", "identity", "password", "savings"),
)
_MATTERS = (
    "not arrived",
    "lost or stolen",
    "was declined",
    "is pending",
    "fee charged",
    "wrong amount",
    "how to change",
)
LABELS_77 = tuple(f"{subject} {matter}" for subject in _SUBJECTS for matter in _MATTERS)


def short(key: str) -> str:
    """Return a short question, about 25 tokens with the template's own."""
    source = random.Random(key)
    return f"{_opening(source)} Write a long story about {source.choice(TOPICS)}."


def of_words(count: int, key: str) -> str:
    """Return a text of ``count`` words and about as many tokens; no two keys begin alike."""
    source = random.Random(key)
    return " ".join(source.choice(WORDS) for _ in range(count))


def message(key: str) -> str:
    """Return a customer's message, to be sorted under one of the labels; about 25 tokens."""
    source = random.Random(key)
    subject, matter = source.choice(_SUBJECTS), source.choice(_MATTERS)
    return (
        f"{_opening(source)} Hello, I am writing because of my {subject}: {matter}. What can I do about the {subject}?"
    )


def _opening(source: random.Random) -> str:
    return f"{source.choice(WORDS).capitalize()} {source.choice(WORDS)} {source.randrange(1000)}."
