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
from agent.api.sampling_request import MOST_CHOICES, MOST_TOKENS, MOST_TOP_LOGPROBS, parse_drawing
from agent.errors import InvalidRequest
from agent.settings import RoutingSettings, ServerSettings
from agent.types import EgressPolicy, InferenceRequest, Message, Prompt, RequestKind, RouteMode, Sampling

DEFAULT_MAX_TOKENS = 16  # the OpenAI API's
MOST_PROMPTS = 2048  # in one call
MOST_PROMPT_TOKENS = 1 << 20
_LARGEST_TOKEN = (1 << 31) - 1


def parse_completion(
    body: Mapping[str, Any], headers: Headers, *, server: ServerSettings, routing: RoutingSettings, now_ms: int
) -> Call:
    """Check every parameter and return the call (see Parser): a request for each prompt.

    What only this model can answer is ``local_only`` by itself, and another route is refused:
    an echo or token ids (its own numbers), a suffix (a chat has no such thing), several
    prompts (they are answered in one response, which a late answer cannot join).
    """
    fields = Fields(body)
    call = Envelope(fields, body, headers)
    suffix = fields.text("suffix", server.max_body_bytes) or ""
    prompts = _prompts(fields, server.max_body_bytes, may_be_empty=bool(suffix))
    echo = fields.flag("echo") or False
    if suffix and echo:
        raise fields.wrong_value("echo", "and suffix cannot be combined: keep one")
    sampling = _sampling(fields)
    stream = fields.flag("stream") or False
    if stream and sampling.best_of > sampling.n:
        raise fields.wrong_value("best_of", "above n cannot be streamed: which are the best is known at the end")
    if stream and len(prompts) > 1:
        raise fields.wrong_value("stream", "takes one prompt: send one call each")
    include_usage = stream_options(fields, stream=stream)
    fields.finish()
    asked = [
        InferenceRequest(
            id="",
            model="",
            received_at_ms=0,
            kind=RequestKind.COMPLETION,
            messages=(Message("user", prompt if isinstance(prompt, str) else ""),),
            prompt=prompt,
            suffix=suffix,
            echo=echo,
            sampling=sampling,
        )
        for prompt in prompts
    ]
    requests = tuple(call.request(one, server=server, routing=routing, now_ms=now_ms) for one in asked)
    if len(requests) > 1 and requests[0].idempotency_key:
        raise InvalidRequest(
            "an Idempotency-Key names one request: send one prompt with it",
            param="idempotency-key",
            code="contradiction",
        )
    if echo or suffix or len(prompts) > 1 or not isinstance(prompts[0], str):
        requests = tuple(_kept_here(request, call) for request in requests)
    return Call(requests, stream, include_usage)


def _kept_here(request: InferenceRequest, call: Envelope) -> InferenceRequest:
    if call.route_mode not in {None, RouteMode.LOCAL_ONLY}:
        raise InvalidRequest(
            "echo, suffix, token ids and several prompts are for the local model alone: leave route_mode out",
            param="outrider.route_mode",
            code="contradiction",
        )
    return msgspec.structs.replace(request, route_mode=RouteMode.LOCAL_ONLY, egress=EgressPolicy.NEVER)


def _prompts(fields: Fields, longest: int, *, may_be_empty: bool) -> tuple[Prompt, ...]:
    """Take one prompt or a list: each a string or a list of token ids."""
    value = fields.take("prompt")
    if value is None:
        raise fields.missing("prompt")
    if not isinstance(value, list) or not value or _is_token(value[0]):
        return (_prompt(fields, "prompt", value, longest, may_be_empty=may_be_empty),)
    if len(value) > MOST_PROMPTS:
        raise fields.wrong_value("prompt", f"must have at most {MOST_PROMPTS} prompts")
    return tuple(
        _prompt(fields, f"prompt[{index}]" if len(value) > 1 else "prompt", one, longest, may_be_empty=may_be_empty)
        for index, one in enumerate(value)
    )


def _prompt(fields: Fields, name: str, value: object, longest: int, *, may_be_empty: bool) -> Prompt:
    if isinstance(value, str):
        if not (value or may_be_empty) or len(value) > longest:
            raise fields.wrong_value(name, f"must have 1 to {longest} characters")
        return value
    if not isinstance(value, list) or not all(map(_is_token, value)):
        raise fields.wrong_type(name, "a string or a list of token ids")
    if not 0 < len(value) <= MOST_PROMPT_TOKENS or not 0 <= min(value) <= max(value) <= _LARGEST_TOKEN:
        raise fields.wrong_value(name, f"must have 1 to {MOST_PROMPT_TOKENS} token ids, none below 0")
    return tuple(value)


def _is_token(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _sampling(fields: Fields) -> Sampling:
    max_tokens = fields.integer("max_tokens", 0, MOST_TOKENS)
    logprobs = fields.integer("logprobs", 0, MOST_TOP_LOGPROBS)
    n = fields.integer("n", 1, MOST_CHOICES) or 1
    best_of = fields.integer("best_of", 1, MOST_CHOICES) or n
    if best_of < n:
        raise fields.wrong_value("best_of", f"must be at least n ({n})")
    return msgspec.structs.replace(
        parse_drawing(fields, max_tokens=DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens),
        n=n,
        best_of=best_of,
        logprobs=logprobs is not None,
        top_logprobs=logprobs or 0,
    )
