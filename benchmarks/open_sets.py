"""Public sets whose answers are written, not chosen from fixed labels: each as a task, with what counts as right."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agent.structure import ToolFunction
from agent.tasks import Match, TaskKind, TaskSpec

SEED = 7
SLOTS = {
    "people": "number of people",
    "time": "time",
    "date": "date",
    "first_name": "first name",
    "last_name": "last name",
}
ENTITIES = ("person", "location")
LABELLED = re.compile(r"Answer(\d): (.*?)(?= Answer\d: |\n\nAnswer format)", re.DOTALL)


class Item(NamedTuple):
    """One question of a set."""

    input: str
    answers: tuple[str, ...]  # each of them is right; JSON of kinds extract and tool
    tools: tuple[ToolFunction, ...] = ()
    options: tuple[str, ...] = ()  # closed by these; no task of fixed labels
    task: str = ""  # of a set of several tasks: which


class OpenSet(NamedTuple):
    """A set as a task."""

    name: str
    spec: TaskSpec
    read: Callable[[Path], tuple[list[Item], list[Item]]]  # those that may teach, those that are asked
    taught: int  # how many teach
    asked: int
    wanted: float | None = 0.72  # AUROC, where the model is right one time in five
    demonstrated: bool = True  # whether taught examples may be shown
    match: Match = Match.NORMALISED
    plain: int = 60  # of those that teach: answered without demonstrations, too
    plain_asked: int = 0  # of those that are asked

    def spec_of(self, item: Item) -> TaskSpec:
        """Return the task of an item: of a set of several tasks, its own."""
        if not item.task:
            return self.spec
        prompt = self.spec.prompt.replace("{task}", SLOTS[item.task])
        return TaskSpec(name=f"{self.spec.name}-{item.task}", kind=self.spec.kind, prompt=prompt)


def _shuffled(items: list[Item]) -> list[Item]:
    return [items[i] for i in np.random.default_rng(SEED).permutation(len(items))]


def _unique(items: Sequence[Item]) -> list[Item]:
    return list({(item.task, item.input): item for item in items}.values())


def restaurant(folder: Path) -> tuple[list[Item], list[Item]]:
    def part(name: str) -> Iterator[Item]:
        for one in json.loads((folder / "restaurant8k" / name).read_text(encoding="utf-8")):
            text = one["userInput"]["text"]
            for label in one.get("labels", []):
                span = label["valueSpan"]
                value = text[span.get("startIndex", 0) : span.get("endIndex", len(text))]
                if value.strip():
                    yield Item(text, (value.strip(),), task=label["slot"])

    taught = _shuffled(_unique(list(part("restaurant8k_train_2.json"))))
    known = {item.input for item in taught}
    asked = _shuffled([item for item in _unique(list(part("restaurant8k_test.json"))) if item.input not in known])
    return _by_turns(taught), _by_turns(asked)


def _by_turns(items: list[Item]) -> list[Item]:
    """Return the items of all tasks in turn, so that the first of them have each task alike."""
    counts: dict[str, int] = {}
    placed = []
    for item in items:
        counts[item.task] = counts.get(item.task, 0) + 1
        placed.append((counts[item.task], item.task, item))
    return [item for _, _, item in sorted(placed, key=lambda one: one[:2])]


def _halves(items: list[Item], taught: int) -> tuple[list[Item], list[Item]]:
    mixed = _shuffled(_unique(items))
    return mixed[:taught], mixed[taught:]


def svamp(folder: Path) -> tuple[list[Item], list[Item]]:
    tree = json.loads((folder / "svamp" / "SVAMP.json").read_text(encoding="utf-8"))
    return _halves([Item(f"{one['Body']}. {one['Question']}", (f"{one['Answer']:g}",)) for one in tree], 400)


def gsm(folder: Path) -> tuple[list[Item], list[Item]]:
    lines = (folder / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    items = [
        Item(one["question"], (one["answer"].rpartition("####")[2].strip().replace(",", ""),))
        for one in map(json.loads, lines)
    ]
    return _halves(items, 500)


def questions(folder: Path) -> tuple[list[Item], list[Item]]:
    lines = (folder / "nq_open" / "NQ-open.dev.jsonl").read_text(encoding="utf-8").splitlines()
    return _halves([Item(one["question"] + "?", tuple(one["answer"])) for one in map(json.loads, lines)], 1000)


def choices(name: str) -> Callable[[Path], tuple[list[Item], list[Item]]]:
    def read(folder: Path) -> tuple[list[Item], list[Item]]:
        items = []
        for one in json.loads((folder / name / "test.json").read_text(encoding="utf-8")):
            told = one["instruction"]
            question = told.partition("question: ")[2].partition("\n\nAnswer1:")[0]
            options = tuple(text.strip() for _, text in LABELLED.findall(told))
            at = int(one["answer"].removeprefix("answer")) - 1
            if len(set(options)) == len(options) > at and all(options):
                items.append(Item(question, (options[at],), options=options))
        return _halves(items, 200)

    return read


def entities(folder: Path) -> tuple[list[Item], list[Item]]:
    def part(name: str) -> Iterator[Item]:
        text = (folder / "wnut17" / name).read_text(encoding="utf-8")
        for block in re.split(r"\n\s*\n", text):
            rows = [line.split("\t") for line in block.strip().splitlines() if "\t" in line]
            words, tags = [row[0] for row in rows], [row[1].strip().split(",")[0] for row in rows]
            found: dict[str, str | None] = dict.fromkeys(ENTITIES)
            for at, tag in enumerate(tags):
                kind = tag.removeprefix("B-")
                if tag.startswith("B-") and kind in found and found[kind] is None:
                    end = at + 1
                    while end < len(tags) and tags[end] == f"I-{kind}":
                        end += 1
                    found[kind] = " ".join(words[at:end])
            if words:
                yield Item(" ".join(words), (json.dumps(found),))

    def balanced(items: list[Item]) -> list[Item]:
        named = [item for item in items if any(json.loads(item.answers[0]).values())]
        others = [item for item in items if not any(json.loads(item.answers[0]).values())]
        return _shuffled([*named, *_shuffled(others)[: len(named)]])

    taught, asked = (balanced(_unique(list(part(n)))) for n in ("emerging.dev.conll", "emerging.test.annotated"))
    return taught, asked


def calls(name: str) -> Callable[[Path], tuple[list[Item], list[Item]]]:
    def read(folder: Path) -> tuple[list[Item], list[Item]]:
        def lines(kind: str) -> Iterator[Any]:
            path = folder / "bfcl" / kind / f"BFCL_v4_{name}.json"
            yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())

        right = {one["id"]: one["ground_truth"] for one in lines("possible_answer")}
        items = []
        for one in lines("question"):
            tools = tuple(
                ToolFunction(
                    name=tool["name"].replace(".", "_"),
                    description=tool["description"],
                    parameters=json.dumps(_schema(tool["parameters"])),
                )
                for tool in one["function"]
            )
            items.append(Item(one["question"][0][-1]["content"], (json.dumps(right[one["id"]]),), tools=tools))
        return _halves(items, len(items) // 2)

    return read


_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string", "Dict": "object", "String": "string"}


def _schema(tree: Any) -> Any:
    if isinstance(tree, dict):
        found = {key: _schema(value) for key, value in tree.items() if key not in {"optional", "default", "format"}}
        if isinstance(tree.get("type"), str):
            found["type"] = _TYPES.get(tree["type"], tree["type"])
        return found
    return [_schema(one) for one in tree] if isinstance(tree, list) else tree


def _text(name: str, prompt: str) -> TaskSpec:
    return TaskSpec(name=name, kind=TaskKind.TEXT, prompt=prompt)


NULLABLE = {"type": ["string", "null"], "maxLength": 60}
SETS = (
    OpenSet(
        "restaurant8k slots",
        _text("slot", "Copy the {task} from the message, word for word, and write nothing else."),
        restaurant,
        300,
        500,
        wanted=0.92,
        plain=200,
        plain_asked=150,
    ),
    OpenSet("svamp", _text("svamp", "Answer with the number alone."), svamp, 120, 300, match=Match.NUMERIC),
    OpenSet("gsm8k", _text("gsm8k", "Answer with the number alone."), gsm, 80, 120, match=Match.NUMERIC),
    OpenSet("nq_open", _text("nq", "Answer the question in a few words."), questions, 150, 350),
    OpenSet("ARC-Easy", _text("arc", "Answer the question."), choices("arc_easy"), 200, 400, demonstrated=False),
    OpenSet("OpenBookQA", _text("obqa", "Answer the question."), choices("openbookqa"), 150, 300, demonstrated=False),
    OpenSet(
        "wnut17",
        TaskSpec(
            name="wnut",
            kind=TaskKind.EXTRACT,
            prompt="Copy the first person and the first location that the message names, each null if it names none.",
            schema={
                "type": "object",
                "properties": dict.fromkeys(ENTITIES, NULLABLE),
                "required": list(ENTITIES),
                "additionalProperties": False,
            },
        ),
        entities,
        200,
        400,
        match=Match.FIELDS,
    ),
    OpenSet(
        "bfcl simple",
        TaskSpec(name="calls", kind=TaskKind.TOOL),
        calls("simple_python"),
        160,
        240,
        demonstrated=False,
    ),
)
