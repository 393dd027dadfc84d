"""Keys, passwords and tokens in a text. Pure; every pattern is bounded."""

from __future__ import annotations

import re
from collections.abc import Iterator

from agent.escalation.personal_data import Found, Kind

_KEYS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"sk-[A-Za-z0-9_-]{16,200}"
    r"|(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{10,200}"
    r"|gh[opsur]_[A-Za-z0-9]{20,255}|github_pat_[A-Za-z0-9_]{20,255}|glpat-[A-Za-z0-9_-]{16,64}"
    r"|(?:AKIA|ASIA|AGPA|AROA)[A-Z0-9]{16}"
    r"|AIza[A-Za-z0-9_-]{30,40}|ya29\.[A-Za-z0-9_-]{20,300}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,200}|hf_[A-Za-z0-9]{20,100}|npm_[A-Za-z0-9]{30,60}|pypi-[A-Za-z0-9_-]{40,300}"
    r"|SG\.[A-Za-z0-9_-]{16,40}\.[A-Za-z0-9_-]{16,80}|key-[0-9a-f]{32}"
    r"|eyJ[A-Za-z0-9_-]{8,2000}\.[A-Za-z0-9_-]{8,4000}(?:\.[A-Za-z0-9_-]{0,2000})?"
    r")"
)
_PEM = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----[^-]{0,20000}(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----)?"
)
_ASSIGNED = re.compile(
    r"(?<![A-Za-z0-9])(?P<name>pass(?:word|wd|phrase|code)|passwor[td]|passwort|kennwort|contrase[nñ]a|mot de passe|pwd"
    r"|(?:client|api|app|access|auth|secret|private|signing|bearer|refresh|session)[_ -]?(?:key|token|secret|id)"
    r"|secret|token|credentials?|cvv|cvc|pin)"
    r"[\"'*`]{0,2}\s{0,3}(?P<how>[:=]{1,2}|is|ist|lautet|est|es)\s{0,3}[\"'`*]{0,2}(?P<value>[^\s\"'`,;<>]{3,300})",
    re.IGNORECASE,
)
_HEADER = re.compile(r"\b(?:Bearer|Basic)\s{1,3}(?P<value>[A-Za-z0-9+/=._~-]{12,4000})")
_QUERY = re.compile(
    r"[?&](?:access_token|api_?key|auth|key|passwd|password|pwd|secret|session|sig|signature|token)="
    r"(?P<value>[^&#\s\"'<>]{4,2000})",
    re.IGNORECASE,
)
_OPAQUE = re.compile(r"(?<![A-Za-z0-9+/_=-])[A-Za-z0-9+/_-]{32,400}={0,2}(?![A-Za-z0-9+/_=-])")
_SURELY_SECRET = re.compile(r"pass|pwd|kennwort|contrase|cvv|cvc|pin", re.IGNORECASE)


def secrets(text: str) -> Iterator[Found]:
    """Yield keys and tokens by their form, values that are called secret, and long random strings."""
    for pattern in (_PEM, _KEYS):
        yield from (Found(*match.span(), Kind.SECRET) for match in pattern.finditer(text))
    for pattern in (_HEADER, _QUERY):
        yield from (Found(*match.span("value"), Kind.SECRET) for match in pattern.finditer(text))
    for match in _ASSIGNED.finditer(text):
        value, start = match["value"].rstrip(".!?)]}"), match.start("value")
        if len(value) >= 3 and _is_secret_value(match["name"], match["how"], value):
            yield Found(start, start + len(value), Kind.SECRET)
    for match in _OPAQUE.finditer(text):
        if _looks_random(match[0]):
            yield Found(*match.span(), Kind.SECRET)


def _is_secret_value(name: str, how: str, value: str) -> bool:
    """Whether this is a value and not the next word of a sentence."""
    strange = any(char.isdigit() for char in value) or any(not char.isalnum() for char in value.strip("-.()"))
    if how[0] in ":=":
        return strange or bool(_SURELY_SECRET.match(name))
    return strange and len(value) >= 4


def _looks_random(text: str) -> bool:
    """Whether a long run of characters mixes digits and both cases as words and numbers do not."""
    digits = sum(char.isdigit() for char in text)
    upper = sum(char.isupper() for char in text)
    lower = sum(char.islower() for char in text)
    return digits >= 3 and upper >= 3 and lower >= 3 and len(set(text)) >= 14 and text.count("/") <= len(text) // 8
