"""The sampling parameters of a request: names of the OpenAI API, and of llama.cpp and vLLM beside them.

``top_k``, ``min_p``, ``repetition_penalty``, ``min_tokens`` and ``ignore_eos`` are no parameters
of the OpenAI API; its clients send them as extra keys of the body.
"""

from __future__ import annotations

import re

import msgspec

from agent.api.fields import Fields
from agent.types import Sampling

MOST_STOPS = 4
LONGEST_STOP = 1024  # characters
MOST_BIASES = 1024
MOST_CHOICES = 16
MOST_TOP_LOGPROBS = 20
LARGEST_TOP_K = 1 << 20
MOST_TOKENS = 1 << 31


def parse_sampling(fields: Fields) -> Sampling:
    """Take the sampling parameters of a chat. Raises InvalidRequest that names the one at fault."""
    old = fields.integer("max_tokens", 1, MOST_TOKENS)
    new = fields.integer("max_completion_tokens", 1, MOST_TOKENS)
    if old is not None and new is not None and old != new:
        raise fields.wrong_value("max_tokens", "and max_completion_tokens differ: keep one")
    logprobs = fields.flag("logprobs") or False
    top = fields.integer("top_logprobs", 0, MOST_TOP_LOGPROBS)
    if top is not None and not logprobs:
        raise fields.wrong_value("top_logprobs", "needs logprobs to be true")
    return msgspec.structs.replace(
        parse_drawing(fields, max_tokens=new if old is None else old),
        n=fields.integer("n", 1, MOST_CHOICES) or 1,
        logprobs=logprobs,
        top_logprobs=top or 0,
    )


def parse_drawing(fields: Fields, *, max_tokens: int | None) -> Sampling:
    """Take what says how tokens are drawn and where an answer stops: the same for chats and completions."""
    defaults = Sampling()
    seed = fields.integer("seed", -(1 << 31), (1 << 32) - 1)
    temperature = fields.number("temperature", 0, 2)
    top_p = fields.number("top_p", 0, 1, above_low=True)
    repetition = fields.number("repetition_penalty", 0, 2, above_low=True)
    return Sampling(
        temperature=defaults.temperature if temperature is None else temperature,
        top_p=defaults.top_p if top_p is None else top_p,
        top_k=fields.integer("top_k", 0, LARGEST_TOP_K) or 0,
        min_p=fields.number("min_p", 0, 1) or 0.0,
        repetition_penalty=defaults.repetition_penalty if repetition is None else repetition,
        frequency_penalty=fields.number("frequency_penalty", -2, 2) or 0.0,
        presence_penalty=fields.number("presence_penalty", -2, 2) or 0.0,
        logit_bias=_logit_bias(fields),
        seed=None if seed is None else seed & 0xFFFF_FFFF,
        max_tokens=max_tokens,
        min_tokens=_min_tokens(fields, max_tokens),
        stop=_stops(fields),
    )


def _min_tokens(fields: Fields, max_tokens: int | None) -> int:
    most = MOST_TOKENS if max_tokens is None else max_tokens
    wanted = fields.integer("min_tokens", 0, MOST_TOKENS) or 0
    if wanted > most:
        raise fields.wrong_value("min_tokens", f"must not be above max_tokens ({most})")
    return most if fields.flag("ignore_eos") else wanted


def _logit_bias(fields: Fields) -> tuple[tuple[int, float], ...]:
    biases = fields.nested("logit_bias")
    if biases is None:
        return ()
    names = biases.names()
    if len(names) > MOST_BIASES:
        raise fields.wrong_value("logit_bias", f"must have at most {MOST_BIASES} tokens")
    if not all(re.fullmatch(r"[0-9]{1,9}", name) for name in names):
        raise fields.wrong_value("logit_bias", 'must have token ids as its keys, such as {"50": -100}')
    return tuple((int(name), biases.number(name, -100, 100) or 0.0) for name in sorted(names))


def _stops(fields: Fields) -> tuple[str, ...]:
    value = fields.take("stop")
    if value is None:
        return ()
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise fields.wrong_type("stop", "a string or a list of strings")
    if len(items) > MOST_STOPS or not all(0 < len(item) <= LONGEST_STOP for item in items):
        raise fields.wrong_value("stop", f"must be at most {MOST_STOPS} strings of 1 to {LONGEST_STOP} characters")
    return tuple(items)
