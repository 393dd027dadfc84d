"""How a call of a tool is written by the model, and read back while it streams.

    <tool_call>
    {"name": "weather", "arguments": {"city": "Paris"}}
    </tool_call>

This is the form that the templates of Qwen, Hermes and SmolLM3 teach; with another template,
the tools and the form are described in a system message. The grammar admits exactly this
spacing, and no newline can stand inside the JSON, so the marks below are unambiguous.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Sequence

import msgspec

from agent.structure import CALL_ARGUMENTS, CALL_CLOSE, CALL_NAME, CALL_OPEN, CallPiece, ToolCall, ToolFunction
from agent.types import Message

OPEN, NAME, ARGUMENTS, CLOSE = CALL_OPEN, CALL_NAME, CALL_ARGUMENTS, CALL_CLOSE
_HEAD = re.compile(re.escape(NAME) + '([^"]*)' + re.escape(ARGUMENTS))

INSTRUCTION = (
    "You can call functions. They are listed here, one JSON object a line:\n"
    "<tools>\n{tools}\n</tools>\n"
    "To call a function, reply with its name and its arguments in this form, once per call:\n"
    '<tool_call>\n{{"name": "<name>", "arguments": {{<arguments>}}}}\n</tool_call>'
)


def tool_object(function: ToolFunction) -> dict[str, object]:
    """Return the function as the OpenAI API and chat templates write it."""
    found: dict[str, object] = {"name": function.name}
    if function.description:
        found["description"] = function.description
    found["parameters"] = (
        json.loads(function.parameters) if function.parameters else {"type": "object", "properties": {}}
    )
    return {"type": "function", "function": found}


def described(messages: Sequence[Message], functions: Sequence[ToolFunction]) -> list[Message]:
    """Return messages for a template that knows no tools: calls, results and descriptions as text."""
    found: list[Message] = []
    for message in messages:
        if message.role == "tool":
            text = f"<tool_response>\n{message.content}\n</tool_response>"
            last = found[-1] if found else None
            if last is not None and last.role == "user" and last.content.endswith("</tool_response>"):
                found[-1] = Message("user", f"{last.content}\n{text}")
            else:
                found.append(Message("user", text))
        elif message.tool_calls:
            calls = [f"{OPEN}{NAME}{c.name}{ARGUMENTS}{c.arguments}{CLOSE}" for c in message.tool_calls]
            found.append(Message(message.role, "\n".join(filter(None, [message.content, *calls]))))
        else:
            found.append(message)
    if functions:
        lines = (json.dumps(tool_object(function), ensure_ascii=False) for function in functions)
        text = INSTRUCTION.format(tools="\n".join(lines))
        if found and found[0].role == "system":
            found[0] = Message("system", f"{found[0].content}\n\n{text}")
        else:
            found.insert(0, Message("system", text))
    return found


def _new_id() -> str:
    return f"call_{secrets.token_hex(12)}"


class CallReader:
    """Parts an answer into its text and its calls. Text goes in piece by piece."""

    def __init__(self, new_id: Callable[[], str] = _new_id) -> None:
        self._new_id = new_id
        self._held = ""
        self._step = self._text
        self._calls: list[ToolCall] = []
        self._arguments: list[list[str]] = []

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The calls so far; the arguments of the last may be incomplete."""
        return tuple(
            msgspec.structs.replace(call, arguments="".join(parts))
            for call, parts in zip(self._calls, self._arguments, strict=True)
        )

    def feed(self, piece: str) -> tuple[str, tuple[CallPiece, ...]]:
        """Take a piece; return the text and the parts of calls that are certain now."""
        self._held += piece
        texts: list[str] = []
        parts: list[CallPiece] = []
        while self._step(texts, parts):
            pass
        return "".join(texts), tuple(parts)

    def finish(self) -> tuple[str, tuple[CallPiece, ...]]:
        """Return what was held back when the answer ends."""
        held, self._held = self._held, ""
        if self._step == self._text:
            return held, ()
        return "", tuple(self._argue(held)) if self._step == self._argument else ()

    # The steps return whether another one may follow at once.

    def _text(self, texts: list[str], parts: list[CallPiece]) -> bool:
        before, mark, after = self._held.partition(OPEN)
        if mark:
            texts.append(before)
            self._held, self._step = after, self._head
            return True
        certain = len(self._held) - _overlap(self._held, OPEN)
        texts.append(self._held[:certain])
        self._held = self._held[certain:]
        return False

    def _head(self, texts: list[str], parts: list[CallPiece]) -> bool:
        found = _HEAD.match(self._held)
        if found is None:
            return False
        call = ToolCall(id=self._new_id(), name=found[1], arguments="")
        parts.append(CallPiece(index=len(self._calls), id=call.id, name=call.name))
        self._calls.append(call)
        self._arguments.append([])
        self._held, self._step = self._held[found.end() :], self._argument
        return True

    def _argument(self, texts: list[str], parts: list[CallPiece]) -> bool:
        before, mark, after = self._held.partition(CLOSE)
        if mark:
            parts += self._argue(before)
            self._held, self._step = after, self._between
            return True
        certain = len(self._held) - _overlap(self._held, CLOSE)
        parts += self._argue(self._held[:certain])
        self._held = self._held[certain:]
        return False

    def _between(self, texts: list[str], parts: list[CallPiece]) -> bool:
        _, mark, after = self._held.partition(OPEN)
        if mark:
            self._held, self._step = after, self._head
        return bool(mark)

    def _argue(self, text: str) -> list[CallPiece]:
        if not text:
            return []
        self._arguments[-1].append(text)
        return [CallPiece(index=len(self._calls) - 1, arguments=text)]


def _overlap(text: str, mark: str) -> int:
    """Length of the longest tail of ``text`` that begins ``mark``."""
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:size])), 0)
