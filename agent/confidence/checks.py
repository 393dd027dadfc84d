"""Whether an answer can be right at all, judged without a model: copied from the input, sums, repeats, refusals. Pure.

Every check is a fact about the text; none knows the right answer. Some are signals among others, and what no
answer may be (``fault``) is never served.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

_WORD = re.compile(r"\w+(?:[.:,'/-]\w+)*")
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?")
_SUM = re.compile(
    r"(?P<a>-?\d[\d,]*\.?\d*)\s*(?P<sign>[-+*/\u00d7\u00f7x])\s*\$?(?P<b>-?\d[\d,]*\.?\d*)\s*=\s*\$?(?P<c>-?\d[\d,]*\.?\d*)"
)
_REFUSAL = re.compile(
    r"\b(?:as an? (?:\w+[ -]){0,4}ai\b"
    r"|i(?:'m| am) (?:sorry|afraid),? (?:but )?(?:i |as )"
    r"|i(?:'m| am) (?:unable|not able) to"
    r"|i (?:can(?:no|')t|do not have|don't have) (?:\w+ )?"
    r"(?:help|assist|answer|provide|access|say|tell|do that|ability))",
    re.IGNORECASE,
)
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_TENS = "thirty forty fifty sixty seventy eighty ninety hundred"
NUMBER_WORDS = {
    **{word: float(value) for value, word in enumerate(_SMALL.split())},
    **{word: 10.0 * (place + 3) for place, word in enumerate(_TENS.split())},
}
GRAM = 3  # words that make a repeat
MOST_REPEATED = 0.5  # share of repeated groups of words from which on an answer goes in circles
_SUM_TOLERANCE = 0.006  # what rounding to cents may hide, and then 1 in 1000


def normalised(text: str) -> str:
    """Return a text without what makes no difference: case, width of characters, spaces, marks around words."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = (word.strip("\"'`.,;:!?()[]{}*_\u201c\u201d\u2018\u2019\u00ab\u00bb") for word in folded.split())
    return " ".join(word for word in words if word)


def words(text: str) -> list[str]:
    """Return the words of a text, in lower case, numbers among them."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def numbers(text: str) -> list[float]:
    """Return the numbers in a text that are written in digits, in their order."""
    return [float(found.replace(",", "")) for found in _NUMBER.findall(text)]


def is_copied(value: str, source: str) -> bool:
    """Whether a value stands in the source as whole words, but for case, spaces and marks around words."""
    wanted = normalised(value)
    return bool(wanted) and f" {wanted} " in f" {normalised(source)} "


def copied_words(value: str, source: str) -> float:
    """Return the share of the value's words that are in the source; 0 for a value without words."""
    found = words(value)
    known = set(words(source))
    return sum(word in known for word in found) / len(found) if found else 0.0


def is_traceable(value: Any, source: str) -> bool:
    """Whether a value of JSON comes from the source: a text that stands there, a number in digits or words.

    True for what cannot be looked for: null, true, false, and what is empty.
    """
    if isinstance(value, bool) or value is None or value in ("", [], {}):
        return True
    if isinstance(value, int | float):
        there = [*numbers(source), *(NUMBER_WORDS[word] for word in words(source) if word in NUMBER_WORDS)]
        return any(math.isclose(value, other) or math.isclose(value * 100, other) for other in there)
    text = str(value)
    if is_copied(text, source):
        return True
    found = numbers(text)
    return bool(found) and all(is_traceable(number, source) for number in found) and not re.search("[A-Za-z]", text)


def leaf_values(tree: Any) -> Iterator[Any]:
    """Yield the values without parts of a JSON value."""
    if isinstance(tree, dict) and tree:
        for one in tree.values():
            yield from leaf_values(one)
    elif isinstance(tree, list) and tree:
        for one in tree:
            yield from leaf_values(one)
    else:
        yield tree


def traceable_share(trees: Sequence[Any], source: str) -> float:
    """Return the share of the values that come from the source; 1 where there are none."""
    found = [is_traceable(value, source) for tree in trees for value in leaf_values(tree)]
    return sum(found) / len(found) if found else 1.0


def wrong_sums(text: str) -> int:
    """Return how many of the written calculations (a + b = c) do not hold."""
    return sum(not _holds(found) for found in _SUM.finditer(text))


def _holds(found: re.Match[str]) -> bool:
    try:
        a, b, c = (float(found[name].replace(",", "").rstrip(".")) for name in "abc")
    except ValueError:
        return True
    match found["sign"]:
        case "+":
            value = a + b
        case "-":
            value = a - b
        case "/" | "\u00f7":
            if b == 0:
                return False
            value = a / b
        case _:
            value = a * b
    return abs(value - c) <= max(_SUM_TOLERANCE, abs(value) / 1000)


def repeated_share(text: str) -> float:
    """Return the share of an answer's groups of three words that were there before, 0..1."""
    found = words(text)
    grams = list(zip(found, found[1:], found[2:], strict=False))
    if len(grams) < 2 * GRAM:
        return 0.0
    return 1.0 - len(Counter(grams)) / len(grams)


def is_refusal(text: str) -> bool:
    """Whether an answer begins by saying that there will be none (English)."""
    return bool(_REFUSAL.search(text[:200]))


def shape(text: str) -> str:
    """Return what kinds of characters a text is made of: ``12:30 pm`` is ``9:9 a``, ``May 5th`` is ``A 9a``."""
    kinds = ["9" if c.isdigit() else "A" if c.isupper() else "a" if c.isalpha() else c for c in text.strip()]
    found = [kind for before, kind in pairwise(["", *kinds]) if kind != before]
    return "".join(found).replace("Aa", "A")


def fault(text: str, *, incomplete: bool = False) -> str:
    """Return why an answer cannot be served whatever its tokens say; empty for nothing."""
    if incomplete:
        return "cut off before it was what its format asks for"
    if not text.strip():
        return "empty"
    if is_refusal(text):
        return "a refusal"
    if repeated_share(text) >= MOST_REPEATED:
        return "it goes in circles"
    return "a calculation in it does not hold" if wrong_sums(text) else ""


def json_of(text: str) -> Any:
    """Return the value of a JSON text; None for what is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None
