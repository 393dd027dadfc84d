"""A user's own task: texts with the right label of each, and how often a model chooses it."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from agent.classification import Classifier, sorting
from agent.errors import EngineFailed, InvalidRequest
from agent.evaluation.steps import Steps
from agent.identifiers import uuid7
from agent.models.quality import Estimate, TaskFigures
from agent.strain import wait_while_strained
from agent.types import InferenceRequest, RequestKind

FEWEST_EXAMPLES, MOST_EXAMPLES = 10, 10_000
MOST_LABELS = 100
MOST_BYTES = 32 << 20
_Z = 1.959964  # of a 95 % interval


class Example(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the file."""

    text: str
    label: str


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A whole file."""

    name: str
    digest: str
    labels: tuple[str, ...]
    examples: tuple[Example, ...]


def read_task(path: Path) -> Task:
    """Read a JSONL file with ``text`` and ``label`` on each line. Raises InvalidRequest with line and reason."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InvalidRequest(f"{path} has more than {MOST_BYTES >> 20} MiB; give a part of it", param="task")
        data = path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}", param="task") from error
    examples = []
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            example = msgspec.json.decode(line, type=Example)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequest(
                f'{path}, line {number}: {error}; a line is {{"text": "...", "label": "..."}}', param="task"
            ) from error
        if not example.label.strip() or example.label != example.label.strip():
            raise InvalidRequest(f"{path}, line {number}: the label is empty or has spaces at an end", param="task")
        examples.append(example)
    labels = tuple(sorted({example.label for example in examples}))
    if not FEWEST_EXAMPLES <= len(examples) <= MOST_EXAMPLES:
        raise InvalidRequest(
            f"{path} has {len(examples)} examples; {FEWEST_EXAMPLES} to {MOST_EXAMPLES} are measured", param="task"
        )
    if not 2 <= len(labels) <= MOST_LABELS:
        raise InvalidRequest(f"{path} has {len(labels)} labels; 2 to {MOST_LABELS} are measured", param="task")
    return Task(name=path.name, digest=hashlib.sha256(data).hexdigest(), labels=labels, examples=tuple(examples))


async def solve(
    task: Task, model: str, classifier: Classifier, steps: Steps, tell: Callable[[str], None]
) -> TaskFigures:
    """Return how often the label that the model scores highest is the right one.

    The scores are those that ``/v1/classify`` answers with. Raises EngineFailed.
    """
    right = 0
    for number, example in enumerate(task.examples, 1):
        step = f"task {task.digest[:16]} {number}"
        is_right = steps.found(step, bool)
        if is_right is None:
            await asyncio.to_thread(wait_while_strained, lambda reason: tell(f"paused: {reason}"))
            now_ms = time.time_ns() // 1_000_000
            request = InferenceRequest(
                id=uuid7(now_ms),
                kind=RequestKind.CLASSIFY,
                model=model,
                messages=sorting(example.text, task.labels),
                labels=task.labels,
                received_at_ms=now_ms,
            )
            answer = await classifier.run(request)
            if answer.failure:
                raise EngineFailed(f"model {model}, {task.name}, example {number}: {answer.failure.message}")
            is_right = answer.text == example.label
            steps.keep(step, is_right)
        right += is_right
        if number % 10 == 0 or number == len(task.examples):
            tell(f"{task.name}: {number} of {len(task.examples)} labelled, {right} right")
    largest = Counter(example.label for example in task.examples).most_common(1)[0][1]
    return TaskFigures(
        name=task.name,
        digest=task.digest,
        labels=len(task.labels),
        examples=len(task.examples),
        accuracy=wilson(right, len(task.examples)),
        majority=largest / len(task.examples),
    )


def wilson(hits: int, asked: int) -> Estimate:
    """Return a share with its 95 % score interval (Wilson 1927); ``asked`` is at least 1."""
    share = hits / asked
    centre = (share + _Z**2 / (2 * asked)) / (1 + _Z**2 / asked)
    half = _Z / (1 + _Z**2 / asked) * math.sqrt(share * (1 - share) / asked + _Z**2 / (4 * asked**2))
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half))
