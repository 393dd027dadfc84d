"""From the body and headers of ``POST /v1/chat/completions`` to an InferenceRequest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.datastructures import Headers

from agent.api.envelope import Envelope
from agent.api.fields import Fields
from agent.errors import InvalidRequest
from agent.settings import RoutingSettings, ServerSettings
from agent.types import InferenceRequest, Message, Sampling

MOST_STOPS = 4
LONGEST_STOP = 1024  # characters

# Parameters of the OpenAI API that are not built here, with the values that change nothing.
UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "n": (1,),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class ChatCall(msgspec.Struct, frozen=True):
    """A validated call: the request, and how its answer is to be written."""

    request: InferenceRequest
    stream: bool
    include_usage: bool


def parse_chat(
    body: Mapping[str, Any], headers: Headers, *, server: ServerSettings, routing: RoutingSettings, now_ms: int
) -> ChatCall:
    """Check every parameter and return the call.

    Raises InvalidRequest that names the parameter, TooManyHops for a loop. Whether the
    model exists is not checked here.
    """
    fields = Fields(body)
    call = Envelope(fields, body, headers)
    messages = parse_messages(fields, server.max_messages)
    sampling = _sampling(fields)
    stream = fields.flag("stream") or False
    include_usage = stream_options(fields, stream=stream)
    for name, defaults in UNSUPPORTED.items():
        fields.only(name, *defaults)
    fields.finish()
    asked = InferenceRequest(id="", model="", received_at_ms=0, messages=messages, sampling=sampling)
    request = call.request(asked, server=server, routing=routing, now_ms=now_ms)
    return ChatCall(request, stream, include_usage)


def parse_messages(fields: Fields, most: int) -> tuple[Message, ...]:
    """Take ``messages``. Raises InvalidRequest that names the part at fault."""
    items = fields.array("messages", most)
    if items is None:
        raise fields.missing("messages")
    if not items:
        raise fields.wrong_value("messages", "must have at least one message")
    found = []
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            raise fields.wrong_type(f"messages[{index}]", "an object")
        found.append(_message(Fields(item, f"messages[{index}]")))
    return tuple(found)


def _message(fields: Fields) -> Message:
    role = fields.text("role", 32)
    if role is None:
        raise fields.missing("role")
    if role not in _ROLES:
        raise fields.wrong_value("role", f"must be one of {', '.join(_ROLES)}; tools are not supported")
    name = fields.text("name", 64)
    content = _content(fields)
    if role == "assistant":
        # An answer of ours, sent back as history, is a valid message.
        refusal = fields.text("refusal", 1 << 20)
        content = refusal if content is None else content
        for unused in ("audio", "function_call"):
            fields.only(unused)
        for unused in ("tool_calls", "annotations"):
            fields.only(unused, [])
    if content is None:
        raise fields.missing("content")
    fields.finish()
    return Message(role=_ROLES[role], content=content, name=name)


def _content(fields: Fields) -> str | None:
    content = fields.take("content")
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise fields.wrong_type("content", "a string or a list of text parts")
    texts = []
    for index, item in enumerate(content):
        where = f"content[{index}]"
        if not isinstance(item, dict):
            raise fields.wrong_type(where, "an object")
        part = Fields(item, fields.path(where))
        kind = part.text("type", 64)
        if kind != "text":
            raise InvalidRequest(
                f"{part.path('type')} must be text: other parts are not supported",
                param=part.path("type"),
                code="unsupported_parameter",
            )
        text = part.take("text")
        if not isinstance(text, str):
            raise part.wrong_type("text", "a string")
        part.only("prompt_cache_breakpoint")
        part.finish()
        texts.append(text)
    return "\n".join(texts)


def _sampling(fields: Fields) -> Sampling:
    old = fields.integer("max_tokens", 1, 1 << 31)
    new = fields.integer("max_completion_tokens", 1, 1 << 31)
    if old is not None and new is not None and old != new:
        raise fields.wrong_value("max_tokens", "and max_completion_tokens differ: keep one")
    seed = fields.integer("seed", -(1 << 31), (1 << 32) - 1)
    logprobs = fields.flag("logprobs") or False
    top = fields.integer("top_logprobs", 0, 20)
    if top is not None and not logprobs:
        raise fields.wrong_value("top_logprobs", "needs logprobs to be true")
    defaults = Sampling()
    temperature = fields.number("temperature", 0, 2)
    top_p = fields.number("top_p", 0, 1, above_low=True)
    return Sampling(
        temperature=defaults.temperature if temperature is None else temperature,
        top_p=defaults.top_p if top_p is None else top_p,
        seed=None if seed is None else seed & 0xFFFF_FFFF,
        max_tokens=new if old is None else old,
        stop=stops(fields),
        logprobs=logprobs,
        top_logprobs=top or 0,
    )


def stops(fields: Fields) -> tuple[str, ...]:
    """Take ``stop``."""
    value = fields.take("stop")
    if value is None:
        return ()
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise fields.wrong_type("stop", "a string or a list of strings")
    if len(items) > MOST_STOPS or not all(0 < len(item) <= LONGEST_STOP for item in items):
        raise fields.wrong_value("stop", f"must be at most {MOST_STOPS} strings of 1 to {LONGEST_STOP} characters")
    return tuple(items)


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
