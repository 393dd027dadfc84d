"""The generated parts of docs/cli.md and docs/configuration.md, made from the program itself.

The documents call these functions in their cog blocks: ``make docs`` writes the results,
``make docs-check`` compares them.
"""

from __future__ import annotations

import enum
import inspect
import json
import types
import typing
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from typing import Any

import click
import msgspec

from agent import configuration, egress_settings, errors, rule_settings, settings
from agent.cli.ask import NO_TEXT
from agent.cli.doctor import PROBLEM_FOUND
from agent.cli.main import COMMANDS, INTERRUPTED, cli

WIDTH = 100


def commands() -> str:
    """Return the help of every command, a section each."""
    parent = click.Context(cli, info_name="outrider", terminal_width=WIDTH, **cli.context_settings)
    parts = ["## outrider\n", _help(cli, parent)]
    for name in COMMANDS:
        command = cli.get_command(parent, name)
        assert command is not None
        parts += list(_sections(command, parent, name, 2))
    return "\n".join(parts)


def _sections(command: click.Command, parent: click.Context, name: str, level: int) -> Iterator[str]:
    context = click.Context(command, parent=parent, info_name=name)
    yield f"\n{'#' * level} {context.command_path}\n"
    yield _help(command, context)
    if isinstance(command, click.Group):
        for inner_name, inner in command.commands.items():
            yield from _sections(inner, context, inner_name, level + 1)


def _help(command: click.Command, context: click.Context) -> str:
    text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    return f"```text\n{text}\n```"


def exit_codes() -> str:
    """Return the table of exit codes: those of the error classes, and the command line's own."""
    return "\n".join(_exit_codes())


def _exit_codes() -> Iterator[str]:
    yield "| Code | When |\n|---|---|"
    meanings: dict[int, list[str]] = {
        0: ["it worked"],
        PROBLEM_FOUND: [
            "`doctor` found a problem; `demo` did not go as it says; `evaluate`: no variant passes all gates",
            "a question was answered with no; the reader of a pipe has gone",
        ],
        2: ["wrong usage"],
        NO_TEXT: ["`ask`: accepted, but there is no text (queued, or withheld as uncertain)"],
        INTERRUPTED: ["stopped by Ctrl-C"],
    }
    for _, item in inspect.getmembers(errors, inspect.isclass):
        if issubclass(item, errors.OutriderError):
            meanings.setdefault(item.exit_code, []).append(f"`{item.code}`")
    for code, meaning in sorted(meanings.items()):
        yield f"| {code} | {', '.join(dict.fromkeys(meaning))} |"


def settings_tables() -> str:
    """Return a table for each section of the configuration file, in its order."""
    parts = [
        "## data_dir\n",
        _table([field for field in msgspec.structs.fields(settings.Settings) if field.name == "data_dir"], ""),
    ]
    for name, section in configuration.sections().items():
        parts += [
            f"\n## [{name}]\n",
            f"{inspect.getdoc(section)}\n",
            _table(msgspec.structs.fields(section), f"{name}."),
        ]
    return "\n".join(parts)


def target_table() -> str:
    """Return the table of a target's keys."""
    return _table(msgspec.structs.fields(settings.TargetSettings), "")


def key_table() -> str:
    """Return the table of the keys of a caller."""
    return _table(msgspec.structs.fields(egress_settings.KeySettings), "")


def rule_table() -> str:
    """Return the table of the keys of a routing rule, and that of its topic."""
    own = _table(msgspec.structs.fields(rule_settings.RuleSettings), "")
    topic = _table(msgspec.structs.fields(rule_settings.TopicSettings), "topic.")
    return f"{own}\n\nOf `topic`:\n\n{topic}"


def price_table() -> str:
    """Return the table of the keys of a price."""
    return _table(msgspec.structs.fields(settings.PriceSettings), "")


def budget_table() -> str:
    """Return the table of the keys of a budget."""
    return _table(msgspec.structs.fields(egress_settings.BudgetSettings), "")


def adapter_table() -> str:
    """Return the table of an adapter's keys."""
    return _table(msgspec.structs.fields(settings.AdapterSettings), "")


def prefix_table() -> str:
    """Return the table of a named prefix's keys."""
    return _table(msgspec.structs.fields(settings.PrefixSettings), "")


def experiment_table() -> str:
    """Return the table of an experiment's keys, and those of its arms."""
    own = _table(msgspec.structs.fields(settings.ExperimentSettings), "")
    arms = _table(msgspec.structs.fields(settings.ArmSettings), "")
    return f"{own}\n\nEach `[[experiments.arms]]`:\n\n{arms}"


def _table(fields: typing.Iterable[Any], prefix: str) -> str:
    lines = ["| Key | Type | Default | Meaning |", "|---|---|---|---|"]
    for field in fields:
        kind, notes = _unwrapped(field.type)
        description = " ".join(note.description for note in notes if note.description)
        lines.append(f"| `{prefix}{field.name}` | {_type(kind, notes)} | {_default(field)} | {description} |")
    return "\n".join(lines)


def _unwrapped(annotation: Any) -> tuple[Any, list[msgspec.Meta]]:
    if typing.get_origin(annotation) is typing.Annotated:
        kind, *notes = typing.get_args(annotation)
        return kind, notes
    return annotation, []


def _type(kind: Any, notes: list[msgspec.Meta]) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        inner, _ = _unwrapped(typing.get_args(kind)[0])
        if isinstance(inner, type) and issubclass(inner, enum.Enum):
            return f"list of {_type(inner, [])}"
        return "list of strings" if inner is str else "list of tables"
    if typing.get_origin(kind) is dict:
        return "table of strings"
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:  # of one type and None
        kind, more = _unwrapped(typing.get_args(kind)[0])
        notes = [*notes, *more]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return "table"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return ", ".join(f'`"{value.value}"`' for value in kind)
    name = {str: "string", int: "integer", float: "number", bool: "boolean", Decimal: "number", date: "date"}[kind]
    bounds = [
        f"{sign} {value:g}" if isinstance(value, float) else f"{sign} {value}"
        for note in notes
        for sign, value in ((">", note.gt), (">=", note.ge), ("<", note.lt), ("<=", note.le))
        if value is not None
    ]
    return f"{name} {', '.join(bounds)}".strip()


def _default(field: Any) -> str:
    if field.required:
        return "required"
    if field.default is None:
        return "none"
    default = field.default_factory() if field.default is msgspec.NODEFAULT else msgspec.to_builtins(field.default)
    return f"`{json.dumps(default)}`"
