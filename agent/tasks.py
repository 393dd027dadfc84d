"""A task: a named workload with its labels or schema, its prompt and what it promises. The unit of a calibration.

A task is one TOML file, ``tasks/NAME.toml`` beside ``outrider.toml``. This module reads and
writes its text and knows nothing of files (``agent.task_folder`` does).
"""

from __future__ import annotations

import difflib
import hashlib
import re
import tomllib
from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from agent.errors import ConfigError
from agent.types import EgressPolicy, Message, OnLowConfidence

FEWEST_LABELS, MOST_LABELS = 2, 500
LONGEST_LABEL = 256  # characters
INSTRUCTION = "Sort the text that the user sends. Reply with exactly one of these labels and nothing else:\n"
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
_Count = Annotated[int, Meta(ge=1, le=1 << 20)]
_Share = Annotated[float, Meta(gt=0, lt=1)]
_BUDGET = re.compile(r"(?P<amount>[0-9]+(\.[0-9]+)?)/day")


class TaskKind(StrEnum):
    """What a task's answers are."""

    LABELS = "labels"  # one of the task's labels
    EXTRACT = "extract"  # JSON as the task's schema says
    TOOL = "tool"  # a call of one of the request's tools
    TEXT = "text"  # a text


class Match(StrEnum):
    """When a written answer is right."""

    EXACT = "exact"  # the same text, or the same value of JSON
    NORMALISED = "normalised"  # but for case, spaces and marks around words
    NUMERIC = "numeric"  # its last number is that of the right answer
    FIELDS = "fields"  # by the F1 of the fields of JSON: all of them, or as many as ``field_f1`` says


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `outrider calibrate` is to certify. One of accuracy, escalate, budget and wrong_share."""

    accuracy: Annotated[_Share | None, Meta(description="Accuracy among the answers that are served, 0..1.")] = None
    escalate: Annotated[_Share | None, Meta(description="Share of all traffic that may be escalated.")] = None
    budget: Annotated[
        str | None, Meta(description='Money for escalations, in the currency of the prices: "1.0/day".')
    ] = None
    wrong_share: Annotated[
        _Share | None, Meta(description="Share of all traffic that may get a wrong local answer.")
    ] = None
    confidence: Annotated[
        float, Meta(gt=0.5, lt=1, description="How sure the promise is to be: 0.9 leaves one calibration in ten.")
    ] = 0.9

    @property
    def named(self) -> tuple[str, float | str] | None:
        """The target that is set, by its name."""
        found = [(name, getattr(self, name)) for name in TARGETS if getattr(self, name) is not None]
        return found[0] if found else None


TARGETS = ("accuracy", "escalate", "budget", "wrong_share")


class TaskSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A task as its file says."""

    name: Annotated[str, Meta(pattern=NAME_PATTERN, description="Name of the task: what requests ask for.")]
    kind: Annotated[TaskKind, Meta(description="labels, extract, tool or text.")] = TaskKind.LABELS
    prompt: Annotated[
        str, Meta(max_length=1 << 20, description="What the model is told. Empty: made of the labels (kind labels).")
    ] = ""
    model: Annotated[str, Meta(max_length=256, description="Whose answers these are; empty: the default model.")] = ""
    egress: Annotated[
        EgressPolicy | None,
        Meta(description="The loosest that may leave: never, approve, redact, allow. None: the target's."),
    ] = None
    on_low_confidence: Annotated[
        OnLowConfidence | None, Meta(description="What a caller gets who names nothing: draft, wait, defer, abstain.")
    ] = None
    quality_sample: Annotated[
        float,
        Meta(ge=0, le=1, description="Share of the served answers that is sent up to be checked, where policy allows."),
    ] = 0.0
    labels: Annotated[
        dict[str, str], Meta(description='The labels, each with a description (may be ""). Kind labels.')
    ] = {}
    schema: Annotated[dict[str, Any], Meta(description="JSON schema of the answers. Kind extract.")] = {}
    tools: Annotated[
        list[dict[str, Any]],
        Meta(description="Functions as in requests of OpenAI's API. Kind tool; none: each request's."),
    ] = []
    max_tokens: Annotated[_Count | None, Meta(description="Most tokens of an answer, where a request names none.")] = (
        None
    )
    match: Annotated[
        Match | None,
        Meta(description="When an answer is right: exact, normalised, numeric, fields. None: as suits the kind."),
    ] = None
    field_f1: Annotated[
        float, Meta(gt=0, le=1, description="Least F1 of the fields that counts as right (match fields).")
    ] = 1.0
    samples: Annotated[
        int,
        Meta(
            ge=0, le=8, description="Answers drawn beside a doubtful one, where teaching shows that it gains; 0: none."
        ),
    ] = 0
    target: Annotated[Target, Meta(description="What `outrider calibrate` is to certify.")] = Target()

    @property
    def digest(self) -> str:
        """What a calibration depends on: kind, labels, schema, tools, prompt, what is right; not its target or policies."""
        shape: tuple[Any, ...] = (self.name, self.kind, sorted(self.labels.items()), self.schema, self.prompt)
        more = (self.tools, self.max_tokens, self.match, self.field_f1, self.samples)
        if more != ([], None, None, 1.0, 0):
            shape = (*shape, *more)
        return hashlib.sha256(msgspec.json.encode(shape, order="sorted")).hexdigest()

    @property
    def matching(self) -> Match:
        """When an answer is right."""
        if self.match is not None:
            return self.match
        return {TaskKind.TEXT: Match.NORMALISED, TaskKind.EXTRACT: Match.FIELDS}.get(self.kind, Match.EXACT)

    @property
    def names(self) -> tuple[str, ...]:
        """The labels in an order of their own, so that the file's order changes nothing."""
        return tuple(sorted(self.labels))

    @property
    def instruction(self) -> str:
        """The system prompt of a request of this task; empty for none."""
        if self.prompt or self.kind is not TaskKind.LABELS:
            return self.prompt
        lines = (f"{name}: {self.labels[name]}" if self.labels[name] else name for name in self.names)
        return INSTRUCTION + "\n".join(lines)

    def messages(self, text: str) -> tuple[Message, ...]:
        """Return the prompt for one input."""
        told = self.instruction
        return ((Message("system", told),) if told else ()) + (Message("user", text),)


def parse_task(text: str, where: str, name: str | None = None) -> TaskSpec:
    """Return the task that a file says. ``name`` is that of the file: it is the default, and must agree.

    Raises ConfigError with ``where``, the key and what is allowed.
    """
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is not valid TOML: {error}; correct that line") from error
    return task_of(tree, where, name)


def task_of(tree: dict[str, Any], where: str, name: str | None = None) -> TaskSpec:
    """Return the task that a table says. Raises ConfigError as ``parse_task`` does."""
    _check_names(tree, where)
    if name is not None and tree.setdefault("name", name) != name:
        raise ConfigError(f"{where}: name = {str(tree['name'])[:80]!r} is not the file's: rename one of them")
    if isinstance(tree.get("labels"), list):
        tree = {**tree, "labels": _described(tree["labels"], where)}
    try:
        spec = msgspec.convert(tree, TaskSpec)
    except msgspec.ValidationError as error:
        text, _, at = str(error).partition(" - at `$")
        raise ConfigError(f"{where}: {at.rstrip('`').lstrip('.') or 'the task'}: {text}") from error
    check_task(spec, where)
    return spec


def _described(names: list[Any], where: str) -> dict[str, Any]:
    """Return a plain list of labels as a table without descriptions."""
    texts = [str(name) for name in names]
    if twice := next((name for name in texts if texts.count(name) > 1), None):
        raise ConfigError(f"{where}: labels: {twice[:80]!r} comes twice")
    return {name if isinstance(name, str) else str(name): "" for name in names}


def _check_names(tree: dict[str, Any], where: str) -> None:
    known = {"": [field.name for field in msgspec.structs.fields(TaskSpec)]}
    known["target."] = [field.name for field in msgspec.structs.fields(Target)]
    given = [("", key) for key in tree]
    if isinstance(tree.get("target"), dict):
        given += [("target.", key) for key in tree["target"]]
    for prefix, key in given:
        if key not in known[prefix]:
            near = difflib.get_close_matches(key, known[prefix], n=1)
            advice = f"did you mean {prefix}{near[0]}?" if near else f"known are {', '.join(known[prefix])}"
            raise ConfigError(f"{where}: unknown key {prefix}{key}; {advice}")


def check_task(spec: TaskSpec, where: str) -> None:
    """Raise ConfigError for what is well written and makes no sense."""
    if spec.kind is TaskKind.LABELS:
        if not FEWEST_LABELS <= len(spec.labels) <= MOST_LABELS:
            raise ConfigError(f"{where}: labels: a task of this kind has {FEWEST_LABELS} to {MOST_LABELS} labels")
        for name in spec.labels:
            if fault := label_fault(name):
                raise ConfigError(f"{where}: labels: {name[:80]!r} {fault}")
        if len({name.casefold() for name in spec.labels}) != len(spec.labels):
            raise ConfigError(f"{where}: labels must differ by more than upper and lower case")
    elif spec.labels:
        raise ConfigError(f"{where}: labels belong to kind labels, not to {spec.kind}")
    if spec.schema and spec.kind is not TaskKind.EXTRACT:
        raise ConfigError(f"{where}: schema belongs to kind extract, not to {spec.kind}")
    if spec.kind is TaskKind.EXTRACT and not spec.schema:
        raise ConfigError(f"{where}: schema: a task of kind extract needs the JSON schema of its answers")
    if spec.tools and spec.kind is not TaskKind.TOOL:
        raise ConfigError(f"{where}: tools belong to kind tool, not to {spec.kind}")
    _check_match(spec, where)
    named = [name for name in TARGETS if getattr(spec.target, name) is not None]
    if len(named) > 1:
        raise ConfigError(f"{where}: target: {' and '.join(named)} are both set: keep one")
    if spec.target.budget is not None:
        budget_per_day(spec.target.budget, f"{where}: target.budget")


def _check_match(spec: TaskSpec, where: str) -> None:
    if spec.kind is TaskKind.LABELS and (spec.match or spec.samples or spec.max_tokens):
        raise ConfigError(f"{where}: match, samples and max_tokens belong to written answers, not to kind labels")
    if spec.match is Match.FIELDS and spec.kind is not TaskKind.EXTRACT:
        raise ConfigError(f"{where}: match: fields are compared of kind extract, not of {spec.kind}")
    if spec.match is Match.NUMERIC and spec.kind is not TaskKind.TEXT:
        raise ConfigError(f"{where}: match: numbers are compared of kind text, not of {spec.kind}")
    if spec.field_f1 != 1.0 and spec.matching is not Match.FIELDS:
        raise ConfigError(f"{where}: field_f1 belongs to match fields")


def label_fault(name: str) -> str:
    """Return what is wrong with a label, empty for nothing."""
    if 0 < len(name) <= LONGEST_LABEL and name == name.strip() and name.isprintable():
        return ""
    return f"must be 1 to {LONGEST_LABEL} printable characters with no space at either end"


def budget_per_day(text: str, where: str) -> float:
    """Return the amount of ``1.0/day``. Raises ConfigError."""
    found = _BUDGET.fullmatch(text)
    if found is None or float(found["amount"]) <= 0:
        raise ConfigError(f"{where}: {text[:40]!r} is no budget: write it as 1.0/day")
    return float(found["amount"])


def task_text(spec: TaskSpec) -> str:
    """Return the text of a task's file."""
    import tomlkit

    tree: dict[str, Any] = msgspec.to_builtins(spec)
    tree = {"name": spec.name, "kind": spec.kind.value, **tree}
    for table in ("target", "labels", "schema", "tools"):  # behind the plain values, which would be read as theirs
        if table in tree:
            tree[table] = tree.pop(table)
    return tomlkit.dumps(tree)
