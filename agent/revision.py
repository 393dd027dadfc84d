"""What changed between a draft and the late answer: one text with marks, not two texts. Pure.

Words are compared by difflib (Ratcliff and Obershelp's pattern matching); answers in JSON by their
fields, whatever their spelling. A removed piece is marked ``[-so-]``, a new one ``{+so+}``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from enum import StrEnum
from typing import Any

import msgspec

MOST_WORDS = 2000  # of one text; longer ones are compared line by line
MOST_LINES = 2000
_WORDS = re.compile(r"\s+|\w+|[^\w\s]")
_LINES = re.compile(r"[^\n]*\n|[^\n]+")
_ABSENT = object()


class Kind(StrEnum):
    """What became of a draft."""

    SAME = "same"
    CHANGED = "changed"
    NEW = "new"  # there was no draft


class Piece(msgspec.Struct, frozen=True):
    """A piece of both texts, or of one of them."""

    op: str  # same, removed, added
    text: str


class FieldChange(msgspec.Struct, frozen=True, omit_defaults=True):
    """A field of an answer in JSON that is another one now. A value that is not there is left out."""

    pointer: str  # JSON pointer (RFC 6901)
    before: Any = msgspec.UNSET
    after: Any = msgspec.UNSET


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """How a late answer differs from its draft."""

    kind: Kind
    similarity: float  # 0 to 1: of the words of both, those that are in both
    pieces: tuple[Piece, ...] = ()
    fields: tuple[FieldChange, ...] = ()  # of two answers in JSON

    @property
    def marked(self) -> str:
        """The late answer with what is gone and what is new in it."""
        marks = {"same": "{}", "removed": "[-{}-]", "added": "{{+{}+}}"}
        return "".join(marks[piece.op].format(piece.text) for piece in self.pieces)


def compare(draft: str | None, late: str) -> Revision:
    """Return what changed. ``draft`` None: there was none."""
    if draft is None:
        return Revision(kind=Kind.NEW, similarity=0.0, pieces=(Piece("added", late),))
    if draft == late:
        return Revision(kind=Kind.SAME, similarity=1.0, pieces=(Piece("same", late),))
    before, after = _json(draft), _json(late)
    if before is not _ABSENT and after is not _ABSENT and _is_tree(before) and _is_tree(after):
        fields = tuple(_changes("", before, after))
        if not fields:
            return Revision(kind=Kind.SAME, similarity=1.0, pieces=(Piece("same", late),))
        pieces, similarity = _pieces(draft, late)
        return Revision(kind=Kind.CHANGED, similarity=similarity, pieces=pieces, fields=fields)
    pieces, similarity = _pieces(draft, late)
    only_spaces = all(piece.op == "same" or not piece.text.strip() for piece in pieces)
    kind = Kind.SAME if only_spaces else Kind.CHANGED
    return Revision(kind=kind, similarity=similarity, pieces=pieces)


def _pieces(draft: str, late: str) -> tuple[tuple[Piece, ...], float]:
    pattern, most = _WORDS, MOST_WORDS
    one, other = pattern.findall(draft), pattern.findall(late)
    if max(len(one), len(other)) > most:
        one, other, most = _LINES.findall(draft), _LINES.findall(late), MOST_LINES
    if max(len(one), len(other)) > most:
        return (Piece("removed", draft), Piece("added", late)), 0.0
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    found: list[Piece] = []
    for op, from_one, to_one, from_other, to_other in matcher.get_opcodes():
        if op == "equal":
            found.append(Piece("same", "".join(one[from_one:to_one])))
            continue
        if to_one > from_one:
            found.append(Piece("removed", "".join(one[from_one:to_one])))
        if to_other > from_other:
            found.append(Piece("added", "".join(other[from_other:to_other])))
    return tuple(found), matcher.ratio()


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _ABSENT


def _is_tree(value: Any) -> bool:
    return isinstance(value, dict | list)


def _changes(pointer: str, before: Any, after: Any) -> Iterator[FieldChange]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in {**before, **after}:
            step = f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}"
            yield from _changes(step, before.get(name, _ABSENT), after.get(name, _ABSENT))
    elif isinstance(before, list) and isinstance(after, list):
        for index in range(max(len(before), len(after))):
            one = before[index] if index < len(before) else _ABSENT
            other = after[index] if index < len(after) else _ABSENT
            yield from _changes(f"{pointer}/{index}", one, other)
    elif type(before) is not type(after) or before != after:
        yield FieldChange(
            pointer,
            msgspec.UNSET if before is _ABSENT else before,
            msgspec.UNSET if after is _ABSENT else after,
        )
