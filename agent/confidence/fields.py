"""How sure each field of a JSON answer is: from the tokens of its value alone.

An answer in JSON, and the arguments of a call, are cut into their leaves (strings, numbers,
literals, empty lists and objects), each named by its JSON pointer (RFC 6901). The score of a
leaf is that of the tokens that overlap its value and carried a choice; what the format forced
says nothing, and a value that was forced as a whole has no score. A number ends where something
else begins, so the byte after it counts with it: 1 instead of 12 is a choice of that byte.

Where the format admits null, ``null_probability`` is what the model, unconstrained, gave to
saying null there: a value that was drawn although null was nearly as likely is a doubtful one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from agent.appraisal import FieldConfidence
from agent.confidence.estimators import score_of
from agent.structure import CALL_ARGUMENTS, CALL_NAME, CALL_OPEN, FormatKind
from agent.types import Generation, InferenceRequest, Token

FieldJudge = Callable[[InferenceRequest, Generation], Generation]
"""Returns the generation with the confidence of each field in it; pure."""

MOST_FIELDS = 1000  # of one answer; further ones are left out

_JSON = {FormatKind.JSON_OBJECT, FormatKind.JSON_SCHEMA}
_LEXEME = re.compile(
    rb'[ \t\r\n]*(?:(?P<string>"[^"\\]*(?:\\.[^"\\]*)*")|(?P<literal>true|false|null)|(?P<number>-?[0-9][0-9.eE+-]*)'
    rb"|(?P<mark>[\[\]{},:]))",
    re.DOTALL,
)
_CALL = re.compile(
    re.escape((CALL_OPEN + CALL_NAME).encode()) + rb'[^"]*' + re.escape(CALL_ARGUMENTS.encode()), re.DOTALL
)


class Leaf(NamedTuple):
    """A value without parts, and where its bytes are. ``end`` lies behind the byte that ends a number."""

    pointer: str
    begin: int
    end: int


def field_judge(estimator: str) -> FieldJudge:
    """Return a judge that scores as the estimator of that name does. Raises ConfigError for an unknown one."""
    score = score_of(estimator)

    def judge(request: InferenceRequest, generation: Generation) -> Generation:
        output = request.response_format
        as_json = output is not None and output.kind in _JSON
        if generation.failure or not (as_json or generation.tool_calls or generation.others):
            return generation

        def fields(tokens: Sequence[Token], *, called: bool) -> dict[str, FieldConfidence]:
            return _fields(tokens, score, called=called) if called or as_json else {}

        others = tuple(
            msgspec.structs.replace(other, fields=fields(other.tokens, called=bool(other.tool_calls)))
            for other in generation.others
        )
        found = fields(generation.tokens, called=bool(generation.tool_calls))
        return msgspec.structs.replace(generation, fields=found, others=others)

    return judge


def _fields(
    tokens: Sequence[Token], score: Callable[[Sequence[Token]], float | None], *, called: bool
) -> dict[str, FieldConfidence]:
    found: dict[str, FieldConfidence] = {}
    text = b"".join(token.text_bytes for token in tokens)
    first, at = 0, 0  # the token that the last leaf began in, and where that token begins
    for leaf in call_leaves(text) if called else leaves(text):
        while at + len(tokens[first].text_bytes) <= leaf.begin:
            at += len(tokens[first].text_bytes)
            first += 1
        null = _null_probability(tokens[first], leaf.begin - at)
        found[leaf.pointer] = FieldConfidence(score(overlapping(tokens, leaf.begin, leaf.end, first, at)), null)
        if len(found) == MOST_FIELDS:
            break
    return found


def overlapping(tokens: Sequence[Token], begin: int, end: int, first: int = 0, at: int = 0) -> list[Token]:
    """Return the tokens that have a byte in the span; ``at`` is where token ``first`` begins, at or before it."""
    found = []
    for token in tokens[first:]:
        if at >= end:
            break
        behind = at + len(token.text_bytes)
        if behind > begin and behind > at:
            found.append(token)
        at = behind
    return found


def _null_probability(token: Token, before: int) -> float | None:
    """Return what null had where a value begins, ``before`` bytes into the token; None where the format forbids it."""
    return token.null_mass if not token.forced and token.forced_bytes == before else None


def leaves(document: bytes, begin: int = 0, prefix: str = "") -> Iterator[Leaf]:
    """Yield the leaves of the JSON document that begins there, up to its end or to where it is cut off.

    A value that is not whole is left out.
    """
    return _Reader(document, begin, prefix).leaves()


def call_leaves(text: bytes) -> Iterator[Leaf]:
    """Yield the leaves of the arguments of all calls, by their pointers in the message of the answer."""
    at, index = 0, 0
    while call := _CALL.search(text, at):
        reader = _Reader(text, call.end(), f"/tool_calls/{index}/function/arguments")
        yield from reader.leaves()
        at, index = reader.at, index + 1


class _Reader:
    """Reads JSON that a grammar has admitted, or the beginning of it."""

    def __init__(self, document: bytes, begin: int, prefix: str) -> None:
        self._document = document
        self._prefix = prefix
        self._path: list[str | int] = []
        self.at = begin

    def leaves(self) -> Iterator[Leaf]:
        key_next = False  # a string that comes now names a member
        opened = -1  # where the list or object that has nothing in it yet begins
        while lexeme := _LEXEME.match(self._document, self.at):
            kind, begin = lexeme.lastgroup, lexeme.start(lexeme.lastgroup or 0)
            self.at = lexeme.end()
            mark = lexeme["mark"]
            if kind == "string" and key_next:
                self._path[-1] = _key(lexeme["string"])
                key_next, opened = False, -1
                continue
            if mark in {b"{", b"["}:
                self._path.append("" if mark == b"{" else 0)
                key_next, opened = mark == b"{", begin
                continue
            if mark == b":":
                continue
            if mark == b",":
                if not self._path:
                    return
                last = self._path[-1]
                key_next = isinstance(last, str)
                if isinstance(last, int):
                    self._path[-1] = last + 1
                continue
            if mark is not None:
                if not self._path:
                    return
                self._path.pop()
                key_next = False
                if opened >= 0:
                    yield Leaf(self._pointer(), opened, self.at)
            else:
                behind = self.at + (kind == "number" and self.at < len(self._document))
                if kind == "number" and self._path and behind == self.at:
                    return  # more digits might have come
                yield Leaf(self._pointer(), begin, behind)
            opened = -1
            if not self._path:
                return

    def _pointer(self) -> str:
        steps = (str(step).replace("~", "~0").replace("/", "~1") for step in self._path)
        return self._prefix + "".join(f"/{step}" for step in steps)


def _key(string: bytes) -> str:
    """Return the text of a member's name; what is no text (half of a surrogate pair) becomes ``?``."""
    try:
        key: str = json.loads(string.decode("utf-8", "replace"), strict=False)
    except ValueError:
        return "?"
    return key.encode("utf-8", "replace").decode()
