"""``response_format``, ``tools`` and the messages that speak of calls: checked and bounded.

Whether a schema, an expression or a grammar can be enforced is found out by the engine; here
is only what keeps it small. Beside OpenAI's types, ``response_format`` takes
``{"type": "enum", "values": [...]}``, ``{"type": "regex", "regex": "..."}`` and
``{"type": "grammar", "grammar": "..."}`` (Lark or GBNF).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from enum import StrEnum
from typing import Any

from agent.api.fields import Fields
from agent.errors import InvalidRequest
from agent.structure import FormatKind, OutputFormat, ToolCall, ToolChoice, ToolFunction, Tools

LONGEST_SCHEMA = 64 << 10  # characters of JSON; of all tools of a request together, too
MOST_SCHEMA_NODES = 4096  # objects and lists in a schema
LARGEST_MULTIPLE = 10_000  # digits of multipleOf, read as an integer: its grammar has as many states
MOST_TOOLS = 64
MOST_CALLS = 64  # in one message
MOST_VALUES = 1000
LONGEST_VALUE = 1024
LONGEST_REGEX = 4096
LONGEST_GRAMMAR = 16 << 10
LONGEST_ARGUMENTS = 1 << 20
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


class _FormatType(StrEnum):
    TEXT = "text"
    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    ENUM = "enum"
    REGEX = "regex"
    GRAMMAR = "grammar"


def parse_structure(fields: Fields) -> tuple[OutputFormat | None, Tools | None]:
    """Take the parameters that say what the answer must look like. Raises InvalidRequest."""
    output, tools = _format(fields.nested("response_format")), _tools(fields)
    _check_together(fields, "response_format", output, tools)
    return output, tools


def parse_flat_structure(fields: Fields) -> tuple[OutputFormat | None, Tools | None]:
    """Take the same as the Responses API has it: ``text.format``, and functions without a level of their own."""
    text = fields.nested("text")
    output = None
    if text is not None:
        output = _format(text.nested("format"), flat=True)
        text.only("verbosity", "medium")
        text.finish()
    tools = _tools(fields, flat=True)
    _check_together(fields, "text.format", output, tools)
    return output, tools


def _check_together(fields: Fields, name: str, output: OutputFormat | None, tools: Tools | None) -> None:
    if tools and tools.callable and output and output.kind not in {FormatKind.JSON_OBJECT, FormatKind.JSON_SCHEMA}:
        raise fields.wrong_value(name, f"of type {output.kind} cannot be combined with tools")


def _inner(given: Fields, name: str, *, flat: bool) -> Fields:
    """Return the object that says more, which the Responses API writes without a level of its own."""
    if flat:
        return given
    inner = given.nested(name)
    if inner is None:
        raise given.missing(name)
    return inner


def _format(given: Fields | None, *, flat: bool = False) -> OutputFormat | None:
    if given is None:
        return None
    kind = given.choice("type", _FormatType)
    found: OutputFormat | None = None
    match kind:
        case None:
            raise given.missing("type")
        case _FormatType.TEXT:
            pass
        case _FormatType.JSON_OBJECT:
            found = OutputFormat(kind=FormatKind.JSON_OBJECT)
        case _FormatType.JSON_SCHEMA:
            inner = _inner(given, "json_schema", flat=flat)
            found = _json_schema(inner)
            inner.finish()
        case _FormatType.ENUM:
            found = OutputFormat(kind=FormatKind.ENUM, source=json.dumps(_values(given), ensure_ascii=False))
        case _FormatType.REGEX:
            found = OutputFormat(kind=FormatKind.REGEX, source=_required(given, "regex", LONGEST_REGEX))
        case _FormatType.GRAMMAR:
            found = OutputFormat(kind=FormatKind.GRAMMAR, source=_required(given, "grammar", LONGEST_GRAMMAR))
    given.finish()
    return found


def _json_schema(inner: Fields) -> OutputFormat:
    name = _name(inner)
    description = inner.text("description", LONGEST_VALUE) or ""
    strict = inner.flag("strict")
    source = _schema(inner, "schema") or '{"type": "object"}'
    return OutputFormat(kind=FormatKind.JSON_SCHEMA, source=source, name=name, description=description, strict=strict)


def _values(given: Fields) -> list[str]:
    values = given.array("values", MOST_VALUES)
    if not values:
        raise given.missing("values")
    if not all(isinstance(value, str) and 0 < len(value) <= LONGEST_VALUE for value in values):
        raise given.wrong_value("values", f"must be strings of 1 to {LONGEST_VALUE} characters")
    return list(dict.fromkeys(values))


def _required(given: Fields, name: str, longest: int) -> str:
    text = given.text(name, longest)
    if not text:
        raise given.missing(name)
    return text


def _name(given: Fields) -> str:
    name = _required(given, "name", 64)
    if not _NAME.fullmatch(name):
        raise given.wrong_value("name", "must be 1 to 64 letters, digits, _ or -")
    return name


def _schema(given: Fields, name: str) -> str:
    """Return a schema as JSON text with its order kept; "" when absent."""
    schema = given.take(name)
    if schema is None:
        return ""
    if not isinstance(schema, dict):
        raise given.wrong_type(name, "a JSON schema: an object")
    text = json.dumps(schema, ensure_ascii=False)
    nodes = list(_nodes(schema))
    if len(text) > LONGEST_SCHEMA or len(nodes) > MOST_SCHEMA_NODES:
        raise given.wrong_value(
            name, f"must have at most {LONGEST_SCHEMA} characters and {MOST_SCHEMA_NODES} objects and lists"
        )
    for node in nodes:
        multiple = node.get("multipleOf") if isinstance(node, dict) else None
        if isinstance(multiple, int | float) and _digits(multiple) > LARGEST_MULTIPLE:
            raise given.wrong_value(
                name, f"has a multipleOf with digits above {LARGEST_MULTIPLE}: it cannot be enforced"
            )
    return text


def _nodes(tree: Any) -> Iterator[dict[str, Any] | list[Any]]:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict | list):
            yield node
            waiting += node.values() if isinstance(node, dict) else node


def _digits(number: float) -> int:
    return int("".join(map(str, Decimal(repr(number)).normalize().as_tuple().digits)))


def _tools(fields: Fields, *, flat: bool = False) -> Tools | None:
    items = fields.array("tools", MOST_TOOLS) or []
    functions = tuple(_function(fields, index, item, flat=flat) for index, item in enumerate(items))
    names = [function.name for function in functions]
    if len(set(names)) != len(names):
        raise fields.wrong_value("tools", "must have a different name for each function")
    if sum(len(function.parameters) + len(function.description) for function in functions) > LONGEST_SCHEMA:
        raise fields.wrong_value("tools", f"must have at most {LONGEST_SCHEMA} characters together")
    choice, only = _tool_choice(fields, flat=flat)
    parallel = fields.flag("parallel_tool_calls")
    if only is not None and only not in names:
        raise fields.wrong_value("tool_choice", "names a function that is not among the tools")
    if not functions:
        if choice is ToolChoice.REQUIRED:
            raise fields.wrong_value("tool_choice", "needs tools")
        return None
    return Tools(functions=functions, choice=choice, only=only, parallel=parallel is not False)


def _function(fields: Fields, index: int, item: object, *, flat: bool) -> ToolFunction:
    where = f"tools[{index}]"
    if not isinstance(item, dict):
        raise fields.wrong_type(where, "an object")
    tool = Fields(item, where)
    kind = tool.text("type", 64)
    if kind != "function":
        raise InvalidRequest(f"{where}.type must be function", param=f"{where}.type", code="unsupported_parameter")
    given = _inner(tool, "function", flat=flat)
    found = ToolFunction(
        name=_name(given),
        description=given.text("description", LONGEST_SCHEMA) or "",
        parameters=_schema(given, "parameters"),
        strict=given.flag("strict"),
    )
    given.finish()
    tool.finish()
    return found


def _tool_choice(fields: Fields, *, flat: bool) -> tuple[ToolChoice, str | None]:
    value = fields.take("tool_choice")
    if isinstance(value, dict):
        given = Fields(value, "tool_choice")
        if given.text("type", 64) != "function":
            raise given.wrong_value("type", "must be function")
        function = _inner(given, "function", flat=flat)
        name = _name(function)
        function.finish()
        given.finish()
        return ToolChoice.REQUIRED, name
    return fields.choice("tool_choice", ToolChoice) or ToolChoice.AUTO, None


def parse_flat_call(fields: Fields) -> ToolCall:
    """Take a ``function_call`` item of the Responses API."""
    name = _name(fields)
    arguments = fields.text("arguments", LONGEST_ARGUMENTS) or "{}"
    if not _is_object(arguments):
        raise fields.wrong_value("arguments", "must be the text of a JSON object")
    return ToolCall(id=_required(fields, "call_id", 256), name=name, arguments=arguments)


def parse_calls(fields: Fields) -> tuple[ToolCall, ...]:
    """Take the ``tool_calls`` of an assistant's message."""
    found = []
    for index, item in enumerate(fields.array("tool_calls", MOST_CALLS) or []):
        where = f"tool_calls[{index}]"
        if not isinstance(item, dict):
            raise fields.wrong_type(where, "an object")
        call = Fields(item, fields.path(where))
        if call.text("type", 64) not in {None, "function"}:
            raise call.wrong_value("type", "must be function")
        function = call.nested("function")
        if function is None:
            raise call.missing("function")
        name = _name(function)
        arguments = function.text("arguments", LONGEST_ARGUMENTS) or "{}"
        if not _is_object(arguments):
            raise function.wrong_value("arguments", "must be the text of a JSON object")
        found.append(ToolCall(id=_required(call, "id", 256), name=name, arguments=arguments))
        call.take("index")  # the stream's deltas have it, and clients send them back as they came
        function.finish()
        call.finish()
    return tuple(found)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
