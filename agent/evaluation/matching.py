"""Whether an answer is right: by its text, its number, its fields or its calls. Pure.

F1 of fields: the harmonic mean of the share of given fields that are right and the share of wanted ones that are
given; null and missing are the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from agent.confidence.checks import json_of, normalised, numbers
from agent.tasks import Match, TaskKind, TaskSpec


def is_right(match: Match, answer: str, wanted: Sequence[str], *, field_f1: float = 1.0) -> bool:
    """Whether an answer is one of those wanted. ``field_f1``: the least F1 that counts, where fields are compared."""
    return any(_agrees(match, answer, one, field_f1) for one in wanted)


def _agrees(match: Match, answer: str, wanted: str, least_f1: float) -> bool:
    match match:
        case Match.EXACT:
            same = json_of(wanted)
            return answer.strip() == wanted.strip() or (same is not None and same == json_of(answer))
        case Match.NORMALISED:
            return normalised(answer) == normalised(wanted)
        case Match.NUMERIC:
            found, right = numbers(answer), numbers(wanted)
            return bool(found) and bool(right) and math.isclose(found[-1], right[-1], rel_tol=1e-6, abs_tol=1e-9)
        case Match.FIELDS:
            return field_score(answer, wanted) >= least_f1 - 1e-9


def field_score(answer: str, wanted: str) -> float:
    """Return the F1 of the fields of a JSON answer, 0..1; 1 where none is wanted and none given."""
    given, right = _fields(json_of(answer)), _fields(json_of(wanted))
    if json_of(answer) is None:
        return 0.0
    hits = sum(pointer in right and _same(value, right[pointer]) for pointer, value in given.items())
    return 2 * hits / (len(given) + len(right)) if given or right else 1.0


def fields_right(answer: str, wanted: str) -> dict[str, bool]:
    """Return, for each field of a JSON answer by its pointer, whether it is as wanted."""
    right = _fields(json_of(wanted), nulls=True)
    found = _fields(json_of(answer), nulls=True)
    return {pointer: _same(value, right.get(pointer)) for pointer, value in found.items()}


def verdict(spec: TaskSpec, wanted: Sequence[str], judged: bool | None, row: Mapping[str, Any]) -> bool | None:
    """Return whether the local answer of a row (``answer``, ``tool_calls``) is right; None where nobody can tell.

    ``judged``: what somebody said of the one answer that is given; of another answer it says nothing, unless that
    one is right and the two are the same but for what does not matter.
    """
    if not wanted:
        return None
    said = calls_text(row["tool_calls"]) if spec.kind is TaskKind.TOOL else str(row["answer"])
    same = is_right(spec.matching, said, wanted, field_f1=spec.field_f1)
    if judged is None:
        return same
    return judged if same else None


def calls_text(calls: Sequence[Any]) -> str:
    """Return calls of tools as JSON in one form: a list of ``{"name": ..., "arguments": {...}}``; empty for no calls."""
    told = []
    for call in calls:
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return ""
        arguments = call.get("arguments")
        arguments = json_of(arguments) if isinstance(arguments, str) else arguments
        told.append({"name": call.get("name"), "arguments": arguments})
    return json.dumps(told, ensure_ascii=False)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return normalised(one) == normalised(other)
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-9)
    return bool(one == other)


def _fields(tree: Any, prefix: str = "", *, nulls: bool = False) -> dict[str, Any]:
    parts: list[tuple[object, Any]] = []
    if isinstance(tree, dict):
        parts = list(tree.items())
    elif isinstance(tree, list):
        parts = list(enumerate(tree))
    if parts:
        found: dict[str, Any] = {}
        for step, value in parts:
            name = str(step).replace("~", "~0").replace("/", "~1")
            found |= _fields(value, f"{prefix}/{name}", nulls=nulls)
        return found
    if tree in ({}, []) or (tree is None and not nulls):
        return {}
    return {prefix: tree}
