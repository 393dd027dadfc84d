"""From the body and headers of ``POST /v1/completions`` to an InferenceRequest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.datastructures import Headers

from agent.api.call import Call
from agent.api.chat_request import stream_options
from agent.api.envelope import Envelope
from agent.api.fields import Fields
from agent.api.sampling_request import MOST_TOKENS, parse_drawing
from agent.errors import InvalidRequest
from agent.settings import RoutingSettings, ServerSettings
from agent.types import EgressPolicy, InferenceRequest, Message, Prompt, RequestKind, RouteMode, Sampling

DEFAULT_MAX_TOKENS = 16  # the OpenAI API's
MOST_LOGPROBS = 20
MOST_PROMPT_TOKENS = 1 << 20
_LARGEST_TOKEN = (1 << 31) - 1

UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "best_of": (1,),
    "n": (1,),
    "suffix": ("",),
}


def parse_completion(
    body: Mapping[str, Any], headers: Headers, *, server: ServerSettings, routing: RoutingSettings, now_ms: int
) -> Call:
    """Check every parameter and return the call (see Parser).

    An echo, and a prompt of token ids, ask for this very model's numbers: such a request is
    ``local_only`` by itself, and another route is refused.
    """
    fields = Fields(body)
    call = Envelope(fields, body, headers)
    prompt = _prompt(fields, server.max_body_bytes)
    echo = fields.flag("echo") or False
    sampling = _sampling(fields)
    stream = fields.flag("stream") or False
    include_usage = stream_options(fields, stream=stream)
    for name, defaults in UNSUPPORTED.items():
        fields.only(name, *defaults)
    fields.finish()
    text = prompt if isinstance(prompt, str) else ""
    asked = InferenceRequest(
        id="",
        model="",
        received_at_ms=0,
        kind=RequestKind.COMPLETION,
        messages=(Message("user", text),),
        prompt=prompt,
        echo=echo,
        sampling=sampling,
    )
    request = call.request(asked, server=server, routing=routing, now_ms=now_ms)
    if echo or not isinstance(prompt, str):
        request = _kept_here(request, call)
    return Call((request,), stream, include_usage)


def _kept_here(request: InferenceRequest, call: Envelope) -> InferenceRequest:
    if call.route_mode not in {None, RouteMode.LOCAL_ONLY}:
        raise InvalidRequest(
            "echo and prompts of token ids ask for the local model's own numbers: leave route_mode out",
            param="outrider.route_mode",
            code="contradiction",
        )
    return msgspec.structs.replace(request, route_mode=RouteMode.LOCAL_ONLY, egress=EgressPolicy.NEVER)


def _prompt(fields: Fields, longest: int) -> Prompt:
    """Take one prompt: a string, a list of token ids, or a list with one of either."""
    value = fields.take("prompt")
    if value is None:
        raise fields.missing("prompt")
    if isinstance(value, list) and value and not isinstance(value[0], int):
        if len(value) > 1:
            raise InvalidRequest(
                "several prompts in one call are not supported: send one call each",
                param="prompt",
                code="unsupported_parameter",
            )
        (value,) = value
    if isinstance(value, str):
        if not 0 < len(value) <= longest:
            raise fields.wrong_value("prompt", f"must have 1 to {longest} characters")
        return value
    if not isinstance(value, list) or not all(isinstance(t, int) and not isinstance(t, bool) for t in value):
        raise fields.wrong_type("prompt", "a string or a list of token ids")
    if not 0 < len(value) <= MOST_PROMPT_TOKENS or not 0 <= min(value) <= max(value) <= _LARGEST_TOKEN:
        raise fields.wrong_value("prompt", f"must have 1 to {MOST_PROMPT_TOKENS} token ids, none below 0")
    return tuple(value)


def _sampling(fields: Fields) -> Sampling:
    max_tokens = fields.integer("max_tokens", 0, MOST_TOKENS)
    logprobs = fields.integer("logprobs", 0, MOST_LOGPROBS)
    return msgspec.structs.replace(
        parse_drawing(fields, max_tokens=DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens),
        logprobs=logprobs is not None,
        top_logprobs=logprobs or 0,
    )
