"""The kinds of personal data, and where one was found in a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NamedTuple

from agent.errors import CannotRedact


class Kind(StrEnum):
    """What was found; also the name that stands in its place."""

    TERM = "TERM"  # of the user's own list
    SECRET = "SECRET"  # noqa: S105 - the name of a kind
    URL = "URL"  # with a password inside
    EMAIL = "EMAIL"
    IBAN = "IBAN"
    CARD = "CARD"
    ID = "ID"  # number of a person with an authority
    MAC = "MAC"
    IP = "IP"
    PLACE = "PLACE"  # coordinates
    PHONE = "PHONE"
    NAME = "NAME"  # only from a recogniser of entities


class Found(NamedTuple):
    """A piece of a text: characters ``start`` to ``end``."""

    start: int
    end: int
    kind: Kind


class CannotRedactNow(CannotRedact):
    """What finds names cannot be asked at the moment; later it can."""

    retryable = True


Recogniser = Callable[[str], Sequence[tuple[int, int]]]
"""Returns where names are in a text, as pairs of start and end."""
