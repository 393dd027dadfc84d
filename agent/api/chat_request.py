"""From the body and headers of ``POST /v1/chat/completions`` to an InferenceRequest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers

from agent.api.call import Call
from agent.api.content_parts import parse_content
from agent.api.envelope import Envelope
from agent.api.fields import Fields
from agent.api.sampling_request import parse_sampling
from agent.api.structure_request import parse_calls, parse_structure
from agent.api.thinking_request import parse_thinking
from agent.settings import RoutingSettings, ServerSettings
from agent.structure import ToolCall
from agent.types import InferenceRequest, Message

# Parameters of the OpenAI API that are not built here, with the values that change nothing.
UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


def parse_chat(
    body: Mapping[str, Any], headers: Headers, *, server: ServerSettings, routing: RoutingSettings, now_ms: int
) -> Call:
    """Check every parameter and return the call (see Parser)."""
    fields = Fields(body)
    call = Envelope(fields, body, headers)
    messages = parse_messages(fields, server.max_messages)
    sampling = parse_sampling(fields)
    response_format, tools = parse_structure(fields)
    thinking = parse_thinking(fields)
    if response_format or (tools and tools.callable):
        for name, given in (("stop", sampling.stop), ("min_tokens", sampling.min_tokens)):
            if given:
                raise fields.wrong_value(name, "cannot be combined with response_format or tools: they end the answer")
    prediction = _prediction(fields)
    stream = fields.flag("stream") or False
    include_usage = stream_options(fields, stream=stream)
    for name, defaults in UNSUPPORTED.items():
        fields.only(name, *defaults)
    fields.finish()
    asked = InferenceRequest(
        id="",
        model="",
        received_at_ms=0,
        messages=messages,
        sampling=sampling,
        response_format=response_format,
        tools=tools,
        thinking=thinking,
        prediction=prediction,
    )
    request = call.request(asked, server=server, routing=routing, now_ms=now_ms)
    return Call((request,), stream, include_usage)


def parse_messages(fields: Fields, most: int) -> tuple[Message, ...]:
    """Take ``messages``. Raises InvalidRequest that names the part at fault."""
    items = fields.array("messages", most)
    if items is None:
        raise fields.missing("messages")
    if not items:
        raise fields.wrong_value("messages", "must have at least one message")
    found: list[Message] = []
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            raise fields.wrong_type(f"messages[{index}]", "an object")
        message = _message(Fields(item, f"messages[{index}]"))
        if message.tool_call_id is not None and not any(
            call.id == message.tool_call_id for earlier in found for call in earlier.tool_calls
        ):
            raise fields.wrong_value(f"messages[{index}].tool_call_id", "is not the id of an earlier call")
        found.append(message)
    return tuple(found)


def _message(fields: Fields) -> Message:
    role = fields.text("role", 32)
    if role is None:
        raise fields.missing("role")
    if role not in _ROLES:
        raise fields.wrong_value("role", f"must be one of {', '.join(_ROLES)}")
    name = fields.text("name", 64)
    content, parts = parse_content(fields, media=role == "user")
    calls: tuple[ToolCall, ...] = ()
    call_id = None
    if role == "tool":
        call_id = fields.text("tool_call_id", 256)
        if call_id is None:
            raise fields.missing("tool_call_id")
    if role == "assistant":
        calls = parse_calls(fields)
        # An answer of ours, sent back as history, is a valid message.
        refusal = fields.text("refusal", 1 << 20)
        content = refusal if content is None else content
        fields.take("reasoning_content")  # thoughts are no part of what is said next
        for unused in ("audio", "function_call"):
            fields.only(unused)
        fields.only("annotations", [])
        if calls and content is None:
            content = ""
    if content is None:
        raise fields.missing("content")
    fields.finish()
    return Message(role=_ROLES[role], content=content, name=name, tool_calls=calls, tool_call_id=call_id, parts=parts)


def _prediction(fields: Fields) -> str:
    """Take ``prediction``; return the text that the answer is expected to repeat, or ""."""
    prediction = fields.nested("prediction")
    if prediction is None:
        return ""
    if prediction.text("type", 64) != "content":
        raise prediction.wrong_value("type", "must be content")
    content, _ = parse_content(prediction, media=False)
    if content is None:
        raise prediction.missing("content")
    prediction.finish()
    return content


def stream_options(fields: Fields, *, stream: bool) -> bool:
    """Take ``stream_options``; return whether the usage is asked for."""
    options = fields.nested("stream_options")
    if options is None:
        return False
    if not stream:
        raise fields.wrong_value("stream_options", "needs stream to be true")
    include_usage = options.flag("include_usage") or False
    options.only("include_obfuscation", False)
    options.finish()
    return include_usage
