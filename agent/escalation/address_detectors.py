"""Where somebody, or a device of somebody, is to be found: mail, network, place. Pure; every pattern is bounded."""

# ruff: noqa: RUF001 - marks of degrees are meant

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from agent.escalation.personal_data import Found, Kind

_URL = re.compile(
    r"(?<![A-Za-z0-9])[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s/@:\"'<>]{0,200}:[^\s/@\"'<>]{1,200}@[^\s\"'<>]{1,2000}"
)
_EMAIL = re.compile(
    r"(?<![\w.!#$%&'*+/=?^`{|}~-])[\w!#$%&'*+/=?^`{|}~-][\w.!#$%&'*+/=?^`{|}~-]{0,63}@"
    r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_](?:[\w-]{0,61}[^\W_])?"
)
_EMAIL_ANYWHERE = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")
_MAC = re.compile(
    r"(?<![0-9A-Fa-f:.-])(?:[0-9A-Fa-f]{2}([:-])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}|[0-9A-Fa-f]{4}(?:\.[0-9A-Fa-f]{4}){2})"
    r"(?![0-9A-Fa-f:-])"
)
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]{2,39}(?:\.\d{1,3}){0,3}(?:%\w{1,15})?(?![\w:])")
_VERSION = re.compile(r"(?:\bversion|\bver\.?|\bv|\brelease)\s?$", re.IGNORECASE)
_DEGREES = re.compile(
    r"(?<![\w.])[+-]?(?P<lat>\d{1,2}\.\d{4,15})(?:\s?°?\s?[NSns],?\s{1,2}|\s?°?\s{0,2}[,;]\s{0,2})"
    r"[+-]?(?P<lon>\d{1,3}\.\d{4,15})(?:\s?°?\s?[EWOewo](?!\w))?(?!\w|\.\d)"
)
_MINUTES = re.compile(
    r"(?<!\w)\d{1,3}\s?°\s?\d{1,2}(?:\.\d{1,6})?\s?['′’]\s?(?:\d{1,2}(?:\.\d{1,6})?\s?(?:[\"″”]|'')\s?)?[NSEWO](?!\w)"
)


def urls(text: str) -> Iterator[Found]:
    """Yield URLs that carry a user and a password."""
    return (Found(*match.span(), Kind.URL) for match in _URL.finditer(text))


def emails(text: str) -> Iterator[Found]:
    """Yield E-mail addresses, also of international domains."""
    for pattern in (_EMAIL, _EMAIL_ANYWHERE):
        yield from (Found(*match.span(), Kind.EMAIL) for match in pattern.finditer(text))


def macs(text: str) -> Iterator[Found]:
    """Yield hardware addresses, in the three usual notations."""
    return (Found(*match.span(), Kind.MAC) for match in _MAC.finditer(text))


def addresses(text: str) -> Iterator[Found]:
    """Yield IPv4 and IPv6 addresses; a version number is none."""
    for pattern in (_IPV4, _IPV6):
        for match in pattern.finditer(text):
            if _is_address(match[0]) and not _VERSION.search(text[max(0, match.start() - 12) : match.start()]):
                yield Found(*match.span(), Kind.IP)


def _is_address(text: str) -> bool:
    if ":" in text and not any(char.isdigit() for char in text):
        return False  # two colons between letters are a name in a program
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def places(text: str) -> Iterator[Found]:
    """Yield coordinates, as decimal degrees or degrees and minutes."""
    for match in _DEGREES.finditer(text):
        if float(match["lat"]) <= 90 and float(match["lon"]) <= 180:
            yield Found(*match.span(), Kind.PLACE)
    yield from (Found(*match.span(), Kind.PLACE) for match in _MINUTES.finditer(text))
