"""Names in place of what belongs to a person, and the way back. Pure.

It works on the very bytes that would leave: every string of the body is searched, and what
was found becomes ``[EMAIL_1]``, the same for the same value all over the body. The answer gets the
values back before anybody reads it. Nothing is stored for that: the same body gives the
same names again.

Fail closed: what cannot be searched (an image, a sound, a file), or still shows something
afterwards, does not leave.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec

from agent.errors import CannotRedact
from agent.escalation.detectors import find
from agent.escalation.image_metadata import without_metadata
from agent.escalation.personal_data import Found, Kind, Recogniser

_MEDIA = {"image_url", "input_image", "input_audio", "audio", "video_url", "file", "input_file"}
_MEDIUM = {"url", "data", "file_data", "file_id"}  # what is no text in a part that holds such; all beside it is
_FIXED = {"role", "type", "model"}  # words of the API itself
_CONSTANTS = {"const", "default", "example"}  # of a schema; other numbers are limits and settings


class Redacted(msgspec.Struct, frozen=True):
    """A body that may leave, and what stands behind its names."""

    body: bytes
    values: Mapping[str, str]  # "EMAIL_1" -> what was there first
    kinds: Mapping[str, int] = {}  # how many pieces of the body were replaced, by kind


def redact(body: bytes, *, terms: Sequence[str] = (), names: Recogniser | None = None, media: bool = False) -> Redacted:
    """Return a JSON body without what was found in it. Raises CannotRedact.

    ``media``: a person looks at it before it leaves, so images, sounds and files may go along:
    images without metadata, and none that would have to be fetched from somewhere.
    """
    document = json.loads(body)
    document = _media(document) if media else document
    if not media and (fault := _unsearchable(document)):
        raise CannotRedact(fault)
    pseudonyms = _Pseudonyms(body.decode(errors="replace"), lambda text: find(text, terms=terms, names=names))
    clean = _walk(document, pseudonyms.replace)
    if any(find(key, terms=terms) for key in _keys(clean)):
        raise CannotRedact("the name of a field holds personal data; names of fields cannot be replaced")
    if left := _left(clean, terms):
        raise CannotRedact(f"something like {', '.join(sorted(left))} would still be in it after pseudonymising")
    return Redacted(msgspec.json.encode(clean), pseudonyms.values, dict(sorted(pseudonyms.kinds.items())))


def without_image_metadata(body: bytes) -> bytes:
    """Return a JSON body with the metadata of its images gone. Raises CannotRedact for an image that cannot be freed of them."""
    return msgspec.json.encode(_media(json.loads(body)))


def restore(body: bytes, values: Mapping[str, str]) -> bytes:
    """Return a JSON reply with the values back in all of its strings; bytes that are no JSON stay as they are.

    A name is known by its kind and number, also where the target changed its brackets, case
    or dash. Where a string is JSON itself (arguments of a call, a structured answer), values
    go in as JSON.
    """
    if not values:
        return body
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return body
    pattern = _written(values)
    known = {_plain(name): value for name, value in values.items()}

    def back(text: str) -> str:
        if text.lstrip()[:1] in {"{", "["} and (inner := _as_json(text)) is not None:
            return json.dumps(_walk(inner, plain), ensure_ascii=False)
        return plain(text)

    def plain(text: str) -> str:
        return pattern.sub(lambda match: known[_plain(match["name"])], text)

    return msgspec.json.encode(_walk(document, back))


class _Pseudonyms:
    """The names of one body."""

    def __init__(self, text: str, search: Callable[[str], list[Found]]) -> None:
        self.values: dict[str, str] = {}
        self.kinds: Counter[str] = Counter()
        self._search = search
        self._names: dict[tuple[Kind, str], str] = {}
        self._numbers: Counter[Kind] = Counter()
        # What the user wrote like a name of ours is no name of ours: nothing is put in its place later.
        self._typed = {_plain(match[0]) for match in _LIKE_A_NAME.finditer(text)}

    def replace(self, text: str) -> str:
        pieces, done = [], 0
        for found in self._search(text):
            pieces += [text[done : found.start], f"[{self._name(found.kind, text[found.start : found.end])}]"]
            done = found.end
            self.kinds[found.kind.value] += 1
        return "".join([*pieces, text[done:]])

    def _name(self, kind: Kind, value: str) -> str:
        key = (kind, _same(kind, value))
        if key not in self._names:
            while True:
                self._numbers[kind] += 1
                name = f"{kind}_{self._numbers[kind]}"
                if _plain(name) not in self._typed:
                    break
            self._names[key] = name
            self.values[name] = value
        return self._names[key]


_LIKE_A_NAME = re.compile(r"(?:" + "|".join(Kind) + r")[ _-]?\d{1,6}", re.IGNORECASE)


def _plain(name: str) -> str:
    return re.sub(r"[ _-]", "", name).upper()


def _written(values: Mapping[str, str]) -> re.Pattern[str]:
    """Match the names as a model may give them back: ``[EMAIL_1]``, ``**Email_1**``, ``email 1``."""
    forms = "|".join(name.replace("_", "[ _-]?") for name in sorted(values, key=len, reverse=True))
    return re.compile(rf"\[?(?<![A-Za-z0-9])(?P<name>{forms})(?!\d)\]?", re.IGNORECASE)


def _same(kind: Kind, value: str) -> str:
    """Return what two ways to write one value have in common."""
    if kind in {Kind.CARD, Kind.PHONE, Kind.IBAN, Kind.ID}:
        return re.sub(r"[^0-9A-Za-z+]", "", value).upper()
    return value if kind is Kind.SECRET else value.casefold()


def _walk(value: Any, change: Callable[[str], str], kept: Collection[str] = ()) -> Any:
    """Return the document with every string changed but the API's own words and the values of ``kept``; keys stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_walk(item, change, kept) for item in value]
    if isinstance(value, dict):
        kept = _MEDIUM if _is_media(value) else kept
        return {key: item if _stays(key, item, kept) else _walk(item, change, kept) for key, item in value.items()}
    return value


def _stays(key: str, item: Any, kept: Collection[str]) -> bool:
    return isinstance(item, str) and (key in kept or (key in _FIXED and not find(item)))


def _left(value: Any, terms: Sequence[str], kept: Collection[str] = ()) -> set[str]:
    """Return the kinds that a second look still finds, in numbers of schemas and tools too."""
    if isinstance(value, str):
        return {piece.kind for piece in find(_LIKE_A_NAME.sub("", value), terms=terms)}
    if isinstance(value, list):
        return {kind for item in value for kind in _left(item, terms, kept)}
    if isinstance(value, dict):
        kept = _MEDIUM if _is_media(value) else kept
        searched = (
            item
            for key, item in value.items()
            if not (key in kept and isinstance(item, str)) and (key in _CONSTANTS or not _is_number(item))
        )
        return {kind for item in searched for kind in _left(item, terms, kept)}
    return _left(str(value), terms) if _is_number(value) else set()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _keys(value: Any) -> list[str]:
    if isinstance(value, list):
        return [key for item in value for key in _keys(item)]
    if isinstance(value, dict):
        return [*value, *(key for item in value.values() for key in _keys(item))]
    return []


def _unsearchable(value: Any) -> str | None:
    if isinstance(value, list):
        return next((fault for item in value if (fault := _unsearchable(item))), None)
    if not isinstance(value, dict):
        return None
    if _is_media(value):
        what = "an image" if "image" in value["type"] else "a file or sound"
        return f"it holds {what}, in which nothing can be replaced"
    return next((fault for item in value.values() if (fault := _unsearchable(item))), None)


def _is_media(value: dict[str, Any]) -> bool:
    kind = value.get("type")
    return isinstance(kind, str) and (kind in _MEDIA or kind.endswith(("_url", "_audio")))


def _media(value: Any) -> Any:
    """Return the document with the metadata of its images gone."""
    if isinstance(value, list):
        return [_media(item) for item in value]
    if not isinstance(value, dict):
        return value
    image = value.get("image_url")
    if value.get("type") == "image_url" and isinstance(image, dict) and isinstance(image.get("url"), str):
        return value | {"image_url": image | {"url": _clean_image(image["url"])}}
    return {key: _media(item) for key, item in value.items()}


def _clean_image(url: str) -> str:
    head, comma, data = url.partition(",")
    if not head.startswith("data:") or not head.endswith(";base64") or not comma:
        raise CannotRedact("it names an image by an address; only an image that comes along can be freed of metadata")
    try:
        image = without_metadata(base64.b64decode(data, validate=True))
    except ValueError as error:
        raise CannotRedact(f"an image in it cannot be freed of metadata: {error}") from None
    return head + "," + base64.b64encode(image).decode()


def _as_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
