"""The cases of an evaluation: examples of a task, with tags and, where somebody asked before, a target's answers.

``{"input": "...", "label": "...", "tag": "hard", "cloud": "..."}``. ``tags`` may be a list. Without
any label or answer the set is label-free: then only agreement with ``cloud`` can be told.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import BadExamples
from agent.evaluation.examples import listed, read_examples
from agent.tasks import TaskKind, TaskSpec

MOST_TAGS = 50


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One case, and the line that it stands on (from 1)."""

    line: int
    input: str
    answers: tuple[str, ...]  # those that are right; none: nobody said
    tags: tuple[str, ...] = ()
    cloud: str | None = None  # what a target answered when it was asked before
    tools: tuple[Any, ...] = ()


class Cases(msgspec.Struct, frozen=True):
    """Cases that can be used, and what a person should know of them."""

    found: tuple[Case, ...]
    labelled: bool
    notices: tuple[str, ...] = ()

    @property
    def tags(self) -> tuple[str, ...]:
        """All tags, in the order of their appearance."""
        return tuple(dict.fromkeys(tag for case in self.found for tag in case.tags))


def read_cases(path: Path, spec: TaskSpec) -> Cases:
    """Return the cases of a file. Raises BadExamples, which names the lines, for anything that is wrong with them."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise BadExamples(f"{path} cannot be read: {error.strerror}") from error
    trees = {number: tree for number, line in enumerate(lines, start=1) if (tree := _object(line)) is not None}
    names = ("label",) if spec.kind is TaskKind.LABELS else ("answer", "answers")
    labelled = any(tree.get(name) is not None for tree in trees.values() for name in names)
    read = read_examples(path, spec, answered=labelled)
    faults: list[str] = []
    found = []
    only_wrong = [example.line for example in read.found if example.verdict is False]
    for example in read.found:
        if example.verdict is False:
            continue  # it says what is wrong, and not what is right
        tree = trees[example.line]
        tags, cloud = _tags(tree), _cloud(tree)
        if tags is None:
            faults.append(f"line {example.line}: a tag must be a text without spaces or colons, tags a list of them")
        found.append(
            Case(
                line=example.line,
                input=example.input,
                answers=example.answers if labelled else (),
                tags=tags or (),
                cloud=cloud,
                tools=example.tools,
            )
        )
    if faults:
        raise BadExamples(f"{path}: {faults[0]}{f' (and {len(faults) - 1} more)' if len(faults) > 1 else ''}")
    if only_wrong and not found:
        raise BadExamples(f"{path}: every line says what is wrong, and none what is right")
    left_out = [f"left out, as they say only what is wrong: {listed(only_wrong)}"] if only_wrong else []
    cases = Cases(tuple(found), labelled, (*read.notices, *left_out, *_notices(found)))
    if len(cases.tags) > MOST_TAGS:
        raise BadExamples(f"{path} has {len(cases.tags)} tags, at most {MOST_TAGS} can be told apart")
    return cases


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        tree = json.loads(line)
    except ValueError:
        return None  # read_examples names the line
    return tree if isinstance(tree, dict) else None


def _tags(tree: dict[str, Any]) -> tuple[str, ...] | None:
    given = tree.get("tags", [])
    given = [*given, tree["tag"]] if isinstance(given, list) and tree.get("tag") is not None else given
    if not isinstance(given, list) or not all(isinstance(one, str) and _is_tag(one) for one in given):
        return None
    return tuple(dict.fromkeys(given))


def _is_tag(text: str) -> bool:
    return 0 < len(text) <= 64 and ":" not in text and text.isprintable() and " " not in text


def _cloud(tree: dict[str, Any]) -> str | None:
    answer = tree.get("cloud")
    if answer is None or isinstance(answer, str):
        return answer
    return json.dumps(answer, sort_keys=True, ensure_ascii=False)


def _notices(found: Sequence[Case]) -> list[str]:
    without = [case.line for case in found if case.cloud is None]
    if without and len(without) < len(found):
        return [f"no cloud answer of an earlier time: {listed(without)}"]
    return []
