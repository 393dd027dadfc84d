"""The ``input`` of the Responses API: a text, or items that become messages.

A call of a function and its result are items of their own there. Calls that follow each other, and
the text before them, are one message of the assistant here. Reasoning is no part of what is said next.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from agent.api.content_parts import MOST_PARTS
from agent.api.fields import Fields
from agent.api.structure_request import parse_flat_call
from agent.errors import InvalidRequest
from agent.structure import ToolCall
from agent.types import Message

LONGEST_ID = 256
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_TEXTS = ("input_text", "output_text")
_MEDIA = ("input_image", "input_file", "input_audio")


def take_items(fields: Fields, most: int) -> list[dict[str, Any]]:
    """Take ``input`` as a list of items. Raises InvalidRequest."""
    value = fields.take("input")
    if value is None:
        raise fields.missing("input")
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    items = fields.array("input", most)
    if not items:
        raise fields.wrong_value("input", "must have at least one item")
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            raise fields.wrong_type(f"input[{index}]", "an object")
    return items


def messages_of(items: Sequence[Mapping[str, Any]], before: Sequence[Message] = ()) -> tuple[Message, ...]:
    """Return the messages of some items. ``before``: those of earlier turns. Raises InvalidRequest that names the part."""
    found: list[Message] = []
    called = {call.id for message in before for call in message.tool_calls}
    for index, item in enumerate(items):
        fields = Fields(item, f"input[{index}]")
        kind = fields.text("type", 64) or "message"
        _drop(fields)
        match kind:
            case "message":
                found.append(_message(fields))
            case "function_call":
                call = parse_flat_call(fields)
                called.add(call.id)
                _add_call(found, call)
            case "function_call_output":
                found.append(_result(fields, called))
            case "reasoning":
                continue
            case _:
                raise InvalidRequest(
                    f"{fields.path('type')} must be message, function_call, function_call_output or reasoning",
                    param=fields.path("type"),
                    code="unsupported_parameter",
                )
        fields.finish()
    return tuple(found)


def _drop(fields: Fields) -> None:
    """Pass over what an item of an answer carries that says nothing to a model."""
    fields.text("id", LONGEST_ID)
    fields.text("status", 64)
    for name in ("async", "caller", "namespace", "phase"):
        fields.only(name)


def _message(fields: Fields) -> Message:
    role = fields.text("role", 32)
    if role is None:
        raise fields.missing("role")
    if role not in _ROLES:
        raise fields.wrong_value("role", f"must be one of {', '.join(_ROLES)}")
    content, parts = _content(fields, "content", media=role == "user")
    return Message(role=_ROLES[role], content=content, parts=parts)


def _add_call(found: list[Message], call: ToolCall) -> None:
    last = found[-1] if found else None
    if last is not None and last.role == "assistant":
        found[-1] = msgspec.structs.replace(last, tool_calls=(*last.tool_calls, call))
    else:
        found.append(Message(role="assistant", content="", tool_calls=(call,)))


def _result(fields: Fields, called: set[str]) -> Message:
    call_id = fields.text("call_id", LONGEST_ID)
    if call_id is None:
        raise fields.missing("call_id")
    if call_id not in called:
        raise fields.wrong_value("call_id", "is not the call_id of an earlier call")
    content, _ = _content(fields, "output", media=False)
    return Message(role="tool", content=content, tool_call_id=call_id)


def _content(fields: Fields, name: str, *, media: bool) -> tuple[str, str]:
    """Return the text of a content, and the JSON of its parts as a chat has them where one is no text."""
    content = fields.take(name)
    if content is None:
        raise fields.missing(name)
    if isinstance(content, str):
        return content, ""
    items = fields.array(name, MOST_PARTS)
    if not items:
        raise fields.wrong_value(name, "must have at least one part")
    texts: list[str] = []
    parts: list[dict[str, Any]] = []
    for index, item in enumerate(items):
        where = f"{name}[{index}]"
        if not isinstance(item, dict):
            raise fields.wrong_type(where, "an object")
        part = Fields(item, fields.path(where))
        kind = part.text("type", 64)
        if kind in _TEXTS or kind == "refusal":
            text = _text(part, "refusal" if kind == "refusal" else "text")
            texts.append(text)
            parts.append({"type": "text", "text": text})
        elif kind in _MEDIA and media:
            parts.append(_medium(part, kind))
        else:
            allowed = (*_TEXTS, *(_MEDIA if media else ()))
            raise InvalidRequest(
                f"{part.path('type')} must be one of {', '.join(allowed)}",
                param=part.path("type"),
                code="unsupported_parameter",
            )
    has_media = len(texts) < len(parts)
    return "\n".join(texts), json.dumps(parts, ensure_ascii=False) if has_media else ""


def _text(part: Fields, name: str) -> str:
    text: Any = part.take(name)
    if not isinstance(text, str):
        raise part.wrong_type(name, "a string")
    for unused in ("annotations", "logprobs", "prompt_cache_breakpoint"):
        part.take(unused)
    part.finish()
    return text


def _medium(part: Fields, kind: str) -> dict[str, Any]:
    """Return a part that is no text as a chat has it. Only that there is something is checked: a target reads it."""
    if kind == "input_image":
        url = part.text("image_url", 1 << 28)
        if not url:
            raise part.missing("image_url")
        part.only("file_id")
        detail = part.text("detail", 16)
        part.finish()
        return {"type": "image_url", "image_url": {"url": url} | ({"detail": detail} if detail else {})}
    if kind == "input_audio":
        inner = part.nested("input_audio")
        if inner is None or not inner.text("data", 1 << 28):
            raise part.missing("input_audio.data")
        return {"type": "input_audio", "input_audio": part.take("input_audio")}
    found = {name: part.text(name, 1 << 28) for name in ("file_data", "file_id", "filename")}
    for name in ("detail", "file_url"):
        part.only(name)
    if not (found["file_data"] or found["file_id"]):
        raise part.missing("file_data")
    part.finish()
    return {"type": "file", "file": {name: value for name, value in found.items() if value}}
