"""Examples of a task: one JSON object a line. What is wrong with them is named by line, before anything is done.

``{"input": "...", "label": "..."}`` for labels, ``{"input": "...", "answer": ...}`` for the other kinds
(a text, or JSON; ``answers``: a list, where several are right). ``"right": false`` says that this answer is a wrong
one, as somebody has judged it: the example counts where the model gives that very answer. Kind tool may bring the
``tools`` of each request. Other keys are left alone.
"""

from __future__ import annotations

import difflib
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent.confidence import checks
from agent.confidence.checks import numbers
from agent.confidence.heads import text_digest
from agent.errors import BadExamples
from agent.evaluation.matching import calls_text
from agent.tasks import Match, TaskKind, TaskSpec

MOST_EXAMPLES = 20_000
LONGEST_INPUT = 100_000  # characters
_SHOWN = 5  # lines of one fault that a message names


class Example(msgspec.Struct, frozen=True):
    """One example, and the line that it stands on (from 1)."""

    line: int
    input: str
    answer: str | None = None  # a label, a text, or JSON; None where none is needed
    others: tuple[str, ...] = ()  # further right answers
    verdict: bool | None = None  # whether this answer is right, as somebody judged it
    tools: tuple[Any, ...] = ()  # of this request (kind tool)
    origin: str = ""  # who said it, of what `outrider tasks export` wrote
    served: bool = False  # the same: the local answer was served
    propensity: float | None = None  # the same: chance with which it was drawn, (0, 1]

    @property
    def answers(self) -> tuple[str, ...]:
        """All right answers; of a judged one itself."""
        return (*(() if self.answer is None else (self.answer,)), *self.others)


class Examples(msgspec.Struct, frozen=True):
    """Examples that can be used, and what a person should know of them."""

    found: tuple[Example, ...]
    notices: tuple[str, ...] = ()


class _Faults:
    """Faults by their kind, each with its lines."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {}

    def add(self, what: str, line: int, why: str = "") -> None:
        self._lines.setdefault(what, []).append(f"{line}{f' ({why})' if why else ''}")

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __str__(self) -> str:
        return "; ".join(f"{what}: {listed(lines)}" for what, lines in self._lines.items())


def listed(lines: Sequence[object]) -> str:
    """Return ``line 3`` or ``lines 1, 2 and 7 more``."""
    shown = ", ".join(map(str, lines[:_SHOWN]))
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return f"line{'s' if len(lines) > 1 else ''} {shown}{more}"


def read_examples(path: Path, spec: TaskSpec, *, answered: bool = True) -> Examples:
    """Return the examples of a file.

    ``answered``: each must say what is right; labels that all of them have are read without it, too.
    Raises BadExamples, which names the lines, for anything that would make the result wrong.
    """
    try:
        with path.open("rb") as file:
            lines = file.read().split(b"\n")
    except OSError as error:
        raise BadExamples(f"{path} cannot be read: {error.strerror}") from error
    return parse_examples(lines, str(path), spec, answered=answered)


def parse_examples(lines: Sequence[bytes], where: str, spec: TaskSpec, *, answered: bool = True) -> Examples:
    """Return the examples of some lines. Raises BadExamples."""
    count = sum(1 for line in lines if line.strip())
    answered = answered or _all_have_labels(lines, spec)
    if count > MOST_EXAMPLES:
        raise BadExamples(
            f"{where} has {count} examples, at most {MOST_EXAMPLES} are taken: draw some at random, "
            "for example with `shuf -n 2000` (a few hundred carry a certificate)"
        )
    if not count:
        raise BadExamples(f"{where} has no examples: write one JSON object a line")
    faults = _Faults()
    found: list[Example] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            example = _example(line, number, spec, answered=answered)
            if isinstance(example, str):
                faults.add(example, number)
            else:
                found.append(example)
    if answered and spec.kind is TaskKind.LABELS:
        _check_labels(found, spec, faults)
    kept, repeated = _without_repeats(found, faults)
    if faults:
        raise BadExamples(f"{where}: {faults}")
    notices = []
    if repeated:
        notices.append(f"counted once, as they repeat an earlier line: {listed(repeated)}")
    foreign = [one.line for one in kept if not _is_latin(one.input)]
    if foreign and len(foreign) < len(kept):
        notices.append(
            f"several writing systems: {listed(foreign)} are not in Latin letters; "
            "what is promised holds for traffic of the same mix only"
        )
    return Examples(tuple(kept), tuple(notices))


def _all_have_labels(lines: Sequence[bytes], spec: TaskSpec) -> bool:
    if spec.kind is not TaskKind.LABELS:
        return False
    return all(isinstance(_example(line, 0, spec, answered=True), Example) for line in lines if line.strip())


def _example(line: bytes, number: int, spec: TaskSpec, *, answered: bool) -> Example | str:
    """Return an example, or what is wrong with it."""
    try:
        tree: Any = json.loads(line.decode("utf-8"), parse_constant=_finite, parse_float=_finite)
    except _NotFinite:
        return "a number that is not finite"
    except (UnicodeDecodeError, ValueError, RecursionError):
        return "not a JSON object in UTF-8"
    if not isinstance(tree, dict):
        return "not a JSON object in UTF-8"
    text = tree.get("input", tree.get("text"))
    if not isinstance(text, str):
        return 'no "input" that is a text'
    try:
        text.encode()
    except UnicodeEncodeError:
        return "half of a surrogate pair"
    if not text.strip():
        return "an empty input"
    if len(text) > LONGEST_INPUT:
        return f"an input of more than {LONGEST_INPUT} characters"
    tools = tree.get("tools") if spec.kind is TaskKind.TOOL else None
    if tools is not None and not isinstance(tools, list):
        return '"tools" is no list'
    origin, propensity = tree.get("origin", ""), tree.get("propensity")
    if not isinstance(origin, str) or (propensity is not None and not _is_chance(propensity)):
        return '"origin" or "propensity" is not as `outrider tasks export` writes it'
    came = Example(
        number,
        text,
        tools=tuple(tools or ()),
        origin=origin,
        served=tree.get("served") is True,
        propensity=propensity,
    )
    if not answered:
        return came
    key = "label" if spec.kind is TaskKind.LABELS else "answer"
    if spec.kind is TaskKind.LABELS:
        answer = tree.get(key)
        is_text = isinstance(answer, str) and bool(answer)
        return msgspec.structs.replace(came, answer=answer) if is_text else f'no "{key}"'
    verdict = tree.get("right")
    if verdict is not None and not isinstance(verdict, bool):
        return '"right" is neither true nor false'
    several = tree.get("answers", [tree.get(key)])
    if not isinstance(several, list) or not several:
        return '"answers" is no list of answers'
    answers = [_written(one, spec) for one in several]
    if not all(answers):
        return f'no "{key}"'
    for one in several:
        if foreign := _of_another_task(one, spec, came.tools):
            return foreign
    if verdict is None and spec.matching is Match.NUMERIC and not any(map(numbers, answers)):
        return "an answer without a number, and the task compares numbers"
    if verdict is not None and len(answers) > 1:
        return '"right" with several answers'
    return msgspec.structs.replace(came, answer=answers[0], others=tuple(answers[1:]), verdict=verdict)


def _is_chance(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


def _written(answer: Any, spec: TaskSpec) -> str:
    """Return a right answer as text; empty for none."""
    if isinstance(answer, str) and spec.kind is not TaskKind.TEXT:
        try:
            answer = json.loads(answer)
        except ValueError:
            return ""
    if spec.kind is TaskKind.TOOL:
        return calls_text(answer if isinstance(answer, list) else [answer])
    if answer is None or isinstance(answer, str):
        return answer or ""
    return json.dumps(answer, sort_keys=True, ensure_ascii=False)


def _of_another_task(answer: Any, spec: TaskSpec, tools: Sequence[Any]) -> str:
    """Return why the task can never give an answer; empty where it can."""
    if spec.kind is TaskKind.TEXT:
        strange = isinstance(answer, dict | list) and spec.matching is not Match.FIELDS
        return f"an answer that is no text, and task {spec.name} compares texts" if strange else ""
    tree = checks.json_of(answer) if isinstance(answer, str) else answer
    if spec.kind is TaskKind.EXTRACT:
        fields = spec.schema.get("properties")
        if isinstance(fields, dict) and fields and (not isinstance(tree, dict) or (tree and not tree.keys() & fields)):
            return f"an answer with none of the fields of task {spec.name} ({', '.join(list(fields)[:_SHOWN])})"
        return ""
    known = {
        one["function"].get("name")
        for one in tools or spec.tools
        if isinstance(one, dict) and isinstance(one.get("function"), dict)
    }
    called = [one.get("name") for one in (tree if isinstance(tree, list) else [tree]) if isinstance(one, dict)]
    if known and not {*called} <= known:
        return f"a call of a function that task {spec.name} has not"
    return ""


class _NotFinite(ValueError):
    """NaN or an infinity: Python reads them, JSON has none."""


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _NotFinite(text)
    return number


def _check_labels(found: Sequence[Example], spec: TaskSpec, faults: _Faults) -> None:
    unknown = [one for one in found if one.answer not in spec.labels]
    if unknown and len(unknown) == len(found):
        names = ", ".join(list(dict.fromkeys(str(one.answer)[:40] for one in found))[:_SHOWN])
        raise BadExamples(
            f"none of the labels ({names}) is one of task {spec.name}: are these the examples of another task?"
        )
    for one in unknown:
        near = difflib.get_close_matches(str(one.answer), spec.labels, n=1)
        why = f"{str(one.answer)[:40]!r}{f', did you mean {near[0]!r}?' if near else ''}"
        faults.add("a label that the task has not", one.line, why)


def _without_repeats(found: Sequence[Example], faults: _Faults) -> tuple[list[Example], list[int]]:
    first: dict[bytes, Example] = {}
    repeated = []
    for one in found:
        before = first.setdefault(text_digest(one.input), one)
        if before is one:
            continue
        if (before.answers, before.verdict) != (one.answers, one.verdict):
            faults.add("the same input with another answer", one.line, f"first on line {before.line}")
        else:
            repeated.append(one.line)
    return list(first.values()), repeated


def check_several_labels(found: Sequence[Example], where: str) -> Counter[str]:
    """Return how many examples each label has. Raises BadExamples for one label only."""
    counts = Counter(str(one.answer) for one in found)
    if len(counts) == 1:
        (label,) = counts
        raise BadExamples(f"{where}: all {len(found)} examples have the label {label!r}: bring examples of the others")
    return counts


def _is_latin(text: str) -> bool:
    """Whether most letters are Latin; True for a text without letters."""
    letters = [char for char in text if char.isalpha()]
    latin = sum(1 for char in letters if char.isascii() or unicodedata.name(char, "").startswith("LATIN"))
    return 2 * latin >= len(letters)
