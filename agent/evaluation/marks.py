"""How right one answer is: exactly, by its words or fields, by its number, by its form. Pure but for the schema check."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from agent.confidence.checks import normalised, numbers, words
from agent.evaluation import matching
from agent.tasks import TaskKind, TaskSpec

Validator = Callable[[str], bool]


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """What one answer is worth beside those that are right."""

    right: bool  # as the task counts: what a calibration counts too
    exact: bool  # the same but for spaces at its ends
    f1: float  # 0..1: of a text its words, of JSON its fields; of a label 1 or 0
    numeric: bool | None = None  # its last number is the right one; None: no right answer has a number
    schema_valid: bool | None = None  # None: the task has no schema


def mark(
    spec: TaskSpec, answer: str, calls: Sequence[Any], wanted: Sequence[str], is_valid: Validator | None = None
) -> Mark:
    """Return the mark of an answer; ``wanted`` are those that are right, at least one."""
    said = matching.calls_text(calls) if spec.kind is TaskKind.TOOL else answer
    right_numbers = [numbers(one)[-1] for one in wanted if numbers(one)]
    return Mark(
        right=is_right(spec, said, wanted),
        exact=said.strip() in {one.strip() for one in wanted},
        f1=max(_f1(spec, said, one) for one in wanted),
        numeric=None if not right_numbers or spec.kind is TaskKind.LABELS else _has_number(said, right_numbers),
        schema_valid=None if is_valid is None else is_valid(said),
    )


def is_right(spec: TaskSpec, said: str, wanted: Sequence[str]) -> bool:
    """Whether an answer counts as right for this task."""
    if spec.kind is TaskKind.LABELS:
        return said in wanted
    return matching.is_right(spec.matching, said, wanted, field_f1=spec.field_f1)


def _has_number(said: str, right: Sequence[float]) -> bool:
    found = numbers(said)
    return bool(found) and any(math.isclose(found[-1], one, rel_tol=1e-6, abs_tol=1e-9) for one in right)


def _f1(spec: TaskSpec, said: str, wanted: str) -> float:
    match spec.kind:
        case TaskKind.LABELS:
            return float(said == wanted)
        case TaskKind.EXTRACT | TaskKind.TOOL:
            return matching.field_score(said, wanted)
        case _:
            return word_f1(said, wanted)


def word_f1(said: str, wanted: str) -> float:
    """Return the harmonic mean of the share of said words that are wanted, and of wanted ones that are said."""
    one, other = Counter(words(said)), Counter(words(wanted))
    if not one or not other:
        return float(normalised(said) == normalised(wanted))
    return 2 * (one & other).total() / (one.total() + other.total())


def schema_validator(schema: Mapping[str, Any]) -> Validator:
    """Return what says whether a text is JSON that the schema admits."""
    import json

    import jsonschema_rs

    validator = jsonschema_rs.validator_for(dict(schema))

    def is_valid(text: str) -> bool:
        try:
            return bool(validator.is_valid(json.loads(text)))
        except ValueError:
            return False

    return is_valid


def macro_f1(pairs: Sequence[tuple[str, str]]) -> float:
    """Return the mean F1 over the labels that are right for some case; pairs are (said, right)."""
    said, right = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    hits = Counter(one for one, other in pairs if one == other)
    return math.fsum(2 * hits[label] / (said[label] + right[label]) for label in right) / max(1, len(right))
