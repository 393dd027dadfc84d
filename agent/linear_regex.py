"""Regular expressions in time that grows with the text and nothing else. Pure.

A rule's expression meets text of strangers, and Python's ``re`` goes back and forth: a short text
can hold it up for ever. Here an expression becomes an automaton (Thompson 1968) whose states are
walked together, and every step that was taken is kept, as RE2 does (Cox, "Regular expression
matching can be simple and fast", 2007). What such an automaton cannot say is refused: references back, looking
ahead or behind, conditional and possessive parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from re import _constants as code  # type: ignore[attr-defined]  # the parser of the standard library
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

LONGEST_PATTERN = 1000  # characters
MOST_STATES = 2000
MOST_STEPS_KEPT = 20_000

_START, _END = -1, -2  # in place of a character: before the first, behind the last


class UnsafePattern(ValueError):
    """The expression cannot be searched for in linear time, or is none."""


class LinearRegex:
    """A compiled expression. ``search`` of n characters takes at most n times its states."""

    def __init__(self, pattern: str, *, ignore_case: bool = False) -> None:
        """Raises UnsafePattern, with what is wrong."""
        if len(pattern) > LONGEST_PATTERN:
            raise UnsafePattern(f"it has more than {LONGEST_PATTERN} characters")
        try:
            tree = parser.parse(pattern, re.IGNORECASE if ignore_case else 0)
        except (re.error, OverflowError, RecursionError) as error:
            raise UnsafePattern(f"it is no regular expression: {error}") from error
        self.pattern = pattern
        self._flags = tree.state.flags
        self._states: list[tuple[Any, ...]] = []
        self._final = self._add(("final",))
        self._first = self._sequence(list(tree), self._final)
        self._kept: dict[tuple[frozenset[int], int, int], tuple[frozenset[int], bool]] = {}

    def search(self, text: str) -> bool:
        """Return whether the expression matches somewhere in the text."""
        states: frozenset[int] = frozenset()
        before = _START
        for char in text:
            states, matched = self._step(states, before, ord(char))
            if matched:
                return True
            before = ord(char)
        return self._step(states, before, _END)[1]

    # --- walking ----------------------------------------------------------------------

    def _step(self, states: frozenset[int], before: int, char: int) -> tuple[frozenset[int], bool]:
        """Begin anew, follow what needs no character between ``before`` and ``char``, then take ``char``."""
        key = (states, _side(before), char)
        known = self._kept.get(key)
        if known is not None:
            return known
        reached = self._closure((*states, self._first), before, char)
        matched = self._final in reached
        after = frozenset(
            self._states[one][2] for one in reached if self._states[one][0] == "take" and self._takes(one, char)
        )
        if len(self._kept) >= MOST_STEPS_KEPT:
            self._kept.clear()
        self._kept[key] = (after, matched)
        return after, matched

    def _closure(self, states: Iterable[int], before: int, char: int) -> set[int]:
        found: set[int] = set()
        waiting = list(states)
        while waiting:
            one = waiting.pop()
            if one in found:
                continue
            found.add(one)
            state = self._states[one]
            if state[0] == "split":
                waiting += state[1]
            elif state[0] == "at" and _holds(state[1], before, char, multiline=bool(self._flags & re.MULTILINE)):
                waiting.append(state[2])
        return found

    def _takes(self, one: int, char: int) -> bool:
        if char < 0:
            return False
        test = self._states[one][1]
        chars = _variants(chr(char)) if self._flags & re.IGNORECASE else {chr(char)}
        return _is(test, chars, self._flags)

    # --- building ---------------------------------------------------------------------

    def _add(self, state: tuple[Any, ...]) -> int:
        if len(self._states) >= MOST_STATES:
            raise UnsafePattern(f"it needs more than {MOST_STATES} states: write smaller counts")
        self._states.append(state)
        return len(self._states) - 1

    def _sequence(self, items: list[tuple[Any, Any]], after: int) -> int:
        for operation, value in reversed(items):
            after = self._item(operation, value, after)
        return after

    def _item(self, operation: Any, value: Any, after: int) -> int:
        if operation in {code.LITERAL, code.NOT_LITERAL, code.IN, code.ANY}:
            return self._add(("take", (operation, value), after))
        if operation is code.AT:
            return self._add(("at", value, after))
        if operation is code.SUBPATTERN:
            _, added, removed, inner = value
            if added or removed:
                raise UnsafePattern("flags inside a part, as (?i:...), are not offered")
            return self._sequence(list(inner), after)
        if operation is code.BRANCH:
            return self._add(("split", [self._sequence(list(one), after) for one in value[1]]))
        if operation in {code.MAX_REPEAT, code.MIN_REPEAT}:
            least, most, inner = value
            return self._repeated(list(inner), least, most, after)
        names = {
            code.GROUPREF: "a reference back",
            code.GROUPREF_EXISTS: "a conditional part",
            code.ASSERT: "looking ahead or behind",
            code.ASSERT_NOT: "looking ahead or behind",
        }
        raise UnsafePattern(f"{names.get(operation, str(operation).lower())} cannot be searched for in linear time")

    def _repeated(self, inner: list[tuple[Any, Any]], least: int, most: Any, after: int) -> int:
        if most is code.MAXREPEAT:
            loop = self._add(("split", [after]))
            self._states[loop][1].append(self._sequence(inner, loop))
            after = loop
        else:
            for _ in range(most - least):
                after = self._add(("split", [after, self._sequence(inner, after)]))
        for _ in range(least):
            after = self._sequence(inner, after)
        return after


def _side(char: int) -> int:
    """Return what a step needs to know of the character before it: start, newline, word or another."""
    if char < 0 or char == 0x0A:
        return char
    return 1 if _is_word(char) else 0


def _holds(where: Any, before: int, char: int, *, multiline: bool) -> bool:
    if where is code.AT_BEGINNING_STRING or (where is code.AT_BEGINNING and not multiline):
        return before == _START
    if where is code.AT_BEGINNING:
        return before in {_START, 0x0A}
    if where is code.AT_END_STRING:
        return char == _END
    if where is code.AT_END:  # the end; behind a last newline only with (?m), unlike ``re``
        return char == _END or (multiline and char == 0x0A)
    if where in {code.AT_BOUNDARY, code.AT_NON_BOUNDARY}:
        return (_is_word(before) != _is_word(char)) is (where is code.AT_BOUNDARY)
    return False


def _is_word(char: int) -> bool:
    return char >= 0 and (chr(char).isalnum() or char == 0x5F)


def _variants(char: str) -> set[str]:
    return {one for one in (char, char.lower(), char.upper(), char.casefold()) if len(one) == 1}


def _is(test: tuple[Any, Any], chars: set[str], flags: int) -> bool:
    """Return whether a test takes a character, given with the other cases of it that count as the same."""
    operation, value = test
    if operation is code.ANY:
        return "\n" not in chars or bool(flags & re.DOTALL)
    if operation is code.LITERAL:
        return chr(value) in chars
    if operation is code.NOT_LITERAL:
        return chr(value) not in chars
    negated = bool(value and value[0][0] is code.NEGATE)
    return any(_is_member(one, char) for one in value[negated:] for char in chars) is not negated


def _is_member(one: tuple[Any, Any], char: str) -> bool:
    operation, value = one
    if operation is code.LITERAL:
        return bool(ord(char) == value)
    if operation is code.RANGE:
        return bool(value[0] <= ord(char) <= value[1])
    name = str(value)
    kind = {"DIGIT": char.isdecimal(), "SPACE": char.isspace(), "WORD": char.isalnum() or char == "_"}
    found = kind[name.rsplit("_", maxsplit=1)[-1]]
    return found is not ("NOT" in name)
