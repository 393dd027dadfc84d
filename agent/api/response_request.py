"""From the body and headers of ``POST /v1/responses`` to an InferenceRequest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from starlette.datastructures import Headers

from agent.api.call import Call
from agent.api.chat_request import stream_options
from agent.api.envelope import LONGEST_DEADLINE_MS, Envelope
from agent.api.fields import Fields
from agent.api.response_items import messages_of, take_items
from agent.api.sampling_request import MOST_TOKENS, MOST_TOP_LOGPROBS, parse_drawing
from agent.api.structure_request import parse_flat_structure
from agent.api.thinking_request import parse_thinking
from agent.response_call import ResponseCall
from agent.settings import RoutingSettings, ServerSettings
from agent.strictness import stricter
from agent.types import EgressPolicy, InferenceRequest, Message, Sampling, Thinking

PREFIX = "resp_"  # of the id of a response, before that of its request

# Parameters of the Responses API that are not built here, with the values that change nothing.
UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "access_programs": (),
    "background_options": (),
    "context_management": ([],),
    "conversation": (),
    "max_tool_calls": (),
    "moderation": (),
    "prompt": (),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "service_tier": ("auto", "default"),
    "truncation": ("disabled",),
}
LOGPROBS = "message.output_text.logprobs"
# Reasoning is here in the open: there is nothing encrypted to include.
INCLUDABLE = (LOGPROBS, "reasoning.encrypted_content")


def parse_response(
    body: Mapping[str, Any],
    headers: Headers,
    /,
    *,
    server: ServerSettings,
    routing: RoutingSettings,
    now_ms: int,
    before: Sequence[Message] = (),
    egress: EgressPolicy | None = None,
) -> Call:
    """Check every parameter and return the call (see Parser).

    ``before``: the messages of the response it goes on from, which leave under no looser policy than ``egress``.
    """
    fields = Fields(body)
    call = Envelope(fields, body, headers)
    instructions = fields.text("instructions", server.max_body_bytes)
    previous = fields.text("previous_response_id", 128)
    items = take_items(fields, server.max_messages)
    messages = (*before, *messages_of(items, before))
    if len(messages) > server.max_messages:
        raise fields.wrong_value("input", f"and the turns before it must have at most {server.max_messages} messages")
    sampling = _sampling(fields)
    response_format, tools = parse_flat_structure(fields)
    if response_format or (tools and tools.callable):
        for name, given in (("stop", sampling.stop), ("min_tokens", sampling.min_tokens)):
            if given:
                raise fields.wrong_value(name, "cannot be combined with text.format or tools: they end the answer")
    thinking = _thinking(fields)
    background = fields.flag("background") or False
    store = fields.flag("store") is not False
    if background and not store:
        raise fields.wrong_value("store", "must be true with background: the answer is asked for later")
    stream = fields.flag("stream") or False
    stream_options(fields, stream=stream)
    for name, defaults in UNSUPPORTED.items():
        fields.only(name, *defaults)
    fields.finish()
    asked = InferenceRequest(
        id="",
        model="",
        received_at_ms=0,
        messages=(*((Message("system", instructions),) if instructions is not None else ()), *messages),
        sampling=sampling,
        response_format=response_format,
        tools=tools,
        thinking=thinking,
        background=background,
        response=ResponseCall(
            input=json.dumps(items, ensure_ascii=False),
            instructions=instructions,
            previous_id=previous.removeprefix(PREFIX) if previous else None,
            store=store,
        ),
    )
    request = call.request(asked, server=server, routing=routing, now_ms=now_ms)
    if egress is not None:
        request = msgspec.structs.replace(request, egress=stricter(egress, request.egress))
    if background and not call.names_deadline:
        request = msgspec.structs.replace(request, deadline_at_ms=now_ms + LONGEST_DEADLINE_MS)
    return Call((request,), stream)


def _sampling(fields: Fields) -> Sampling:
    top = fields.integer("top_logprobs", 0, MOST_TOP_LOGPROBS) or 0
    included = fields.array("include", 16) or []
    if not all(name in INCLUDABLE for name in included):
        raise fields.wrong_value("include", f"may name {' and '.join(INCLUDABLE)}")
    return msgspec.structs.replace(
        parse_drawing(fields, max_tokens=fields.integer("max_output_tokens", 1, MOST_TOKENS)),
        logprobs=LOGPROBS in included,
        top_logprobs=top if LOGPROBS in included else 0,
    )


def _thinking(fields: Fields) -> Thinking | None:
    """Take ``reasoning``, and what llama-server and vLLM have for it beside that."""
    reasoning = fields.nested("reasoning")
    names = ("thinking_budget_tokens", "chat_template_kwargs")
    given = {name: value for name in names if (value := fields.take(name)) is not None}
    if reasoning is not None:
        given["reasoning_effort"] = reasoning.take("effort")
        for name in ("summary", "generate_summary"):
            reasoning.text(name, 16)  # thoughts are told as they are
        reasoning.only("context", "auto")
        reasoning.only("mode", "standard")
        reasoning.finish()
    return parse_thinking(Fields(given))
