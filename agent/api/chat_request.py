"""From the body and headers of ``POST /v1/chat/completions`` to an InferenceRequest."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.datastructures import Headers

from agent.api.fields import Fields
from agent.api.sampling_request import parse_sampling
from agent.api.structure_request import parse_calls, parse_structure
from agent.errors import InvalidRequest, TooManyHops
from agent.identifiers import uuid7
from agent.settings import RoutingSettings, ServerSettings
from agent.structure import ToolCall
from agent.types import EgressPolicy, InferenceRequest, Message, OnLowConfidence, RouteMode

MOST_HOPS = 3  # this many Outriders behind a request are a loop
LONGEST_KEY = 255  # characters of an Idempotency-Key
LONGEST_DEADLINE_MS = 86_400_000
MOST_METADATA = 16

EXTENSION_HEADERS = {
    "on_low_confidence": "x-outrider-on-low-confidence",
    "route_mode": "x-outrider-route-mode",
    "egress": "x-outrider-egress",
    "deadline_ms": "x-outrider-deadline-ms",
}
HOPS_HEADER = "x-outrider-hops"

# Parameters of the OpenAI API that are not built here, with the values that change nothing.
UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": ("none",),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")


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
    model = fields.text("model", 256)
    if not model:
        raise fields.missing("model")
    messages = _messages(fields, server.max_messages)
    sampling = parse_sampling(fields)
    response_format, tools = parse_structure(fields)
    if sampling.stop and (response_format or (tools and tools.callable)):
        raise fields.wrong_value("stop", "cannot be combined with response_format or tools: they end the answer")
    stream = fields.flag("stream") or False
    include_usage = _stream_options(fields, stream=stream)
    metadata = _metadata(fields)
    user = fields.text("user", 512)
    extension = _extension(fields, headers)
    for name, defaults in UNSUPPORTED.items():
        fields.only(name, *defaults)
    fields.finish()
    span_ms = extension.integer("deadline_ms", 1, LONGEST_DEADLINE_MS) or int(server.request_timeout_s * 1000)
    request = InferenceRequest(
        id=uuid7(now_ms),
        model=model,
        messages=messages,
        sampling=sampling,
        response_format=response_format,
        tools=tools,
        route_mode=extension.choice("route_mode", RouteMode) or routing.mode,
        on_low_confidence=extension.choice("on_low_confidence", OnLowConfidence) or routing.on_low_confidence,
        egress=extension.choice("egress", EgressPolicy),
        idempotency_key=_idempotency_key(headers),
        body_sha256=_digest(body, headers),
        metadata=metadata,
        user=user,
        received_at_ms=now_ms,
        deadline_at_ms=now_ms + span_ms,
        hops=_hops(headers),
    )
    extension.finish()
    return ChatCall(request, stream, include_usage)


def _messages(fields: Fields, most: int) -> tuple[Message, ...]:
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
    content = _content(fields)
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
        for unused in ("audio", "function_call"):
            fields.only(unused)
        fields.only("annotations", [])
        if calls and content is None:
            content = ""
    if content is None:
        raise fields.missing("content")
    fields.finish()
    return Message(role=_ROLES[role], content=content, name=name, tool_calls=calls, tool_call_id=call_id)


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


def _stream_options(fields: Fields, *, stream: bool) -> bool:
    options = fields.nested("stream_options")
    if options is None:
        return False
    if not stream:
        raise fields.wrong_value("stream_options", "needs stream to be true")
    include_usage = options.flag("include_usage") or False
    options.only("include_obfuscation", False)
    options.finish()
    return include_usage


def _metadata(fields: Fields) -> dict[str, str]:
    value = fields.take("metadata")
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise fields.wrong_type("metadata", "an object of strings")
    if len(value) > MOST_METADATA or any(len(key) > 64 or len(text) > 512 for key, text in value.items()):
        raise fields.wrong_value("metadata", "must have at most 16 pairs, keys of 64 and values of 512 characters")
    return value


def _extension(fields: Fields, headers: Headers) -> Fields:
    """Merge the ``outrider`` object and the x-outrider-* headers; a contradiction is refused."""
    known = {*EXTENSION_HEADERS.values(), HOPS_HEADER}
    for header in headers:
        # A misspelt x-outrider-egress must not let text out.
        if header.startswith("x-outrider-") and header not in known:
            raise InvalidRequest(
                f"unknown header {header[:100]}: known are {', '.join(sorted(known))}",
                param=header[:100],
                code="unknown_parameter",
            )
    given = fields.take("outrider")
    if given is not None and not isinstance(given, dict):
        raise fields.wrong_type("outrider", "an object")
    merged: dict[str, Any] = dict(given or {})
    for name, header in EXTENSION_HEADERS.items():
        text = _single(headers, header)
        if text is None:
            continue
        value: object = int(text) if name == "deadline_ms" and re.fullmatch(r"[0-9]{1,12}", text) else text
        if merged.get(name) is not None and merged[name] != value:
            raise InvalidRequest(
                f"outrider.{name} and the header {header} differ: keep one",
                param=f"outrider.{name}",
                code="contradiction",
            )
        merged[name] = value
    return Fields(merged, "outrider")


def _single(headers: Headers, name: str) -> str | None:
    values = headers.getlist(name)
    if len(set(values)) > 1:
        raise InvalidRequest(f"the header {name} came twice with different values", param=name, code="contradiction")
    return values[0] if values else None


def _idempotency_key(headers: Headers) -> str | None:
    key = _single(headers, "idempotency-key")
    if key is not None and (len(key) > LONGEST_KEY or not _KEY.fullmatch(key)):
        raise InvalidRequest(
            f"Idempotency-Key must be 1 to {LONGEST_KEY} printable ASCII characters",
            param="idempotency-key",
            code="invalid_value",
        )
    return key


def _hops(headers: Headers) -> int:
    text = _single(headers, HOPS_HEADER)
    if text is None:
        return 0
    if not re.fullmatch(r"[0-9]{1,3}", text):
        raise InvalidRequest(f"{HOPS_HEADER} must be a number", param=HOPS_HEADER, code="invalid_value")
    if int(text) >= MOST_HOPS:
        raise TooManyHops(
            f"the request came through {int(text)} Outriders, at most {MOST_HOPS - 1} are allowed: "
            "two of them may be each other's target"
        )
    return int(text)


def _digest(body: Mapping[str, Any], headers: Headers) -> str:
    """Hash what makes two requests the same: the body whatever its spelling, and the headers that steer it."""
    steering = {name: _single(headers, header) for name, header in EXTENSION_HEADERS.items()}
    return hashlib.sha256(msgspec.json.encode([body, steering], order="deterministic")).hexdigest()
