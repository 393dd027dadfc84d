"""Control tokens come from the template only: their text, where a caller wrote it, stays text.

The caller's messages and tools are rendered with marks in the place of such texts; what comes
out is cut at the marks again, so that the texts are tokenized on their own.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from agent.engine.runtime import PromptRejected
from agent.structure import ToolCall, ToolFunction, Tools
from agent.types import Message

# Stands for a control token's text while the template is rendered; nobody can guess it.
_MARK = f"\ue000{secrets.token_hex(8)}:"


class ControlTexts:
    """The texts of a vocabulary's control tokens, such as ``<|im_end|>``."""

    def __init__(self, texts: Iterable[str]) -> None:
        longest_first = sorted(filter(None, texts), key=len, reverse=True)
        self._texts = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def hide(self, messages: Sequence[Message], tools: Tools | None) -> tuple[list[Message], Tools | None, list[str]]:
        """Put marks where the caller's text contains that of control tokens; return what they hide, too.

        Raises PromptRejected for arguments and parameters that are not JSON.
        """
        hidden: list[str] = []

        def mark(found: re.Match[str]) -> str:
            hidden.append(found[0])
            return f"{_MARK}{len(hidden) - 1};"

        def clean(text: str) -> str:
            return self._texts.sub(mark, text)

        def clean_json(text: str) -> str:
            # Spelt anew first: an escape such as \u003c must not come to life when a template reads it.
            try:
                return clean(json.dumps(json.loads(text), ensure_ascii=False)) if text else ""
            except (ValueError, RecursionError) as error:
                raise PromptRejected("a tool's arguments or parameters are not JSON") from error

        def clean_call(call: ToolCall) -> ToolCall:
            return ToolCall(id=clean(call.id), name=clean(call.name), arguments=clean_json(call.arguments))

        def clean_function(function: ToolFunction) -> ToolFunction:
            return msgspec.structs.replace(
                function,
                name=clean(function.name),
                description=clean(function.description),
                parameters=clean_json(function.parameters),
            )

        marked = [
            Message(
                message.role,
                clean(message.content),
                tool_calls=tuple(map(clean_call, message.tool_calls)),
                tool_call_id=None if message.tool_call_id is None else clean(message.tool_call_id),
            )
            for message in messages
        ]
        if tools is not None:
            tools = msgspec.structs.replace(tools, functions=tuple(map(clean_function, tools.functions)))
        return marked, tools, hidden


def parts(rendered: str, hidden: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Cut at the marks; yield each text, and whether control tokens are to be read out of it."""
    first, *others = rendered.split(_MARK)
    yield first, True
    for other in others:
        number, _, text = other.partition(";")
        yield hidden[int(number)], False
        yield text, True
