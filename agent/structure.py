"""What an answer must look like: a format, or calls of tools. Values only."""

from __future__ import annotations

from enum import StrEnum

import msgspec

# How a model writes a call, and how it is read back: agent.engine.call_markup.
CALL_OPEN = "<tool_call>"
CALL_NAME = '\n{"name": "'
CALL_ARGUMENTS = '", "arguments": '
CALL_CLOSE = "}\n</tool_call>"


class FormatKind(StrEnum):
    """The ways to say what an answer must look like."""

    JSON_OBJECT = "json_object"  # any JSON object
    JSON_SCHEMA = "json_schema"
    ENUM = "enum"  # one of some strings
    REGEX = "regex"
    GRAMMAR = "grammar"  # Lark, or GBNF as llama.cpp has it


class OutputFormat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The format of an answer. Whoever generates enforces it."""

    kind: FormatKind
    source: str = ""  # the schema or the list of strings as JSON, the expression, the grammar
    name: str = ""  # json_schema: as the caller called it; goes to a target
    description: str = ""  # the same
    strict: bool | None = None  # the same; here every schema is enforced


class ToolFunction(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A function that the model may ask to be called."""

    name: str
    description: str = ""
    parameters: str = ""  # JSON schema of an object; "" for no parameters
    strict: bool | None = None  # goes to a target; here every schema is enforced


class ToolChoice(StrEnum):
    """Whether tools are called."""

    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"  # at least one call


class Tools(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The tools of a request."""

    functions: tuple[ToolFunction, ...]
    choice: ToolChoice = ToolChoice.AUTO
    only: str | None = None  # with REQUIRED: the one function that is to be called
    parallel: bool = True  # whether one answer may hold several calls

    @property
    def callable(self) -> tuple[ToolFunction, ...]:
        """The functions that this answer may call."""
        if self.choice is ToolChoice.NONE:
            return ()
        return tuple(function for function in self.functions if self.only in {None, function.name})


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that the model asks for."""

    id: str
    name: str
    arguments: str  # JSON text; cut off where the answer was


class CallPiece(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A part of a call while it streams: first its id and name, then pieces of its arguments."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""
