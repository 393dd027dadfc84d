"""What in a text belongs to a person or opens a door: secrets, addresses, numbers. Pure.

Structured kinds only; names of people and places have no form that could be checked. The time
grows with the length of the text and nothing else. In doubt something is found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from agent.escalation.address_detectors import addresses, emails, macs, places, urls
from agent.escalation.number_detectors import cards, ibans, nationals, phones
from agent.escalation.personal_data import Found, Kind, Recogniser
from agent.escalation.secret_detector import secrets


def find(text: str, *, terms: Sequence[str] = (), names: Recogniser | None = None) -> list[Found]:
    """Return what was found, in order and without overlap; a piece is never left half covered.

    ``terms`` are found as whole words whatever their case.
    """
    found: list[Found] = []
    for detector in (_terms(terms), *_DETECTORS, _names(names)):
        for piece in detector(text):
            _take(found, piece)
    return sorted(found)


def _take(found: list[Found], piece: Found) -> None:
    """Add a piece; with those that it touches it becomes one, under the kind that was found first."""
    touching = [other for other in found if other.start < piece.end and piece.start < other.end]
    if touching:
        for other in touching:
            found.remove(other)
        start, end = min(piece.start, *(o.start for o in touching)), max(piece.end, *(o.end for o in touching))
        piece = Found(start, end, touching[0].kind)
    found.append(piece)


_Detector = Callable[[str], Iterable[Found]]


def _terms(terms: Sequence[str]) -> _Detector:
    words = sorted({term.strip() for term in terms if term.strip()}, key=len, reverse=True)
    if not words:
        return lambda _text: ()
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, words)) + r")(?!\w)", re.IGNORECASE)
    return lambda text: (Found(*match.span(), Kind.TERM) for match in pattern.finditer(text))


def _names(names: Recogniser | None) -> _Detector:
    if names is None:
        return lambda _text: ()
    return lambda text: (Found(start, end, Kind.NAME) for start, end in names(text) if start < end)


# In the order of their rank: what several find is what the first of them says.
_DETECTORS: tuple[_Detector, ...] = (
    secrets,
    urls,
    emails,
    ibans,
    cards,
    nationals,
    macs,
    addresses,
    places,
    phones,
)
