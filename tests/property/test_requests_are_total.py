"""Whatever JSON comes to classify or completions, parsing ends in a valid request or names a parameter."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers

from agent.api.classify_request import parse_classify
from agent.api.completion_request import parse_completion
from agent.api.wire import error_object
from agent.errors import RequestError
from agent.settings import RoutingSettings, ServerSettings

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = [
    "n", "best_of", "suffix", "prompt", "echo", "min_tokens", "ignore_eos", "max_tokens", "logprobs", "temperature", "top_p", "seed", "stop", "stream",
    "stream_options", "labels", "input", "messages", "metadata", "user", "outrider",
]  # fmt: skip
given_bodies = st.dictionaries(st.sampled_from(NAMES), values, max_size=5)


@pytest.mark.parametrize(
    ("parse", "base"),
    [
        (parse_classify, {"model": "m", "labels": ["a", "b"], "input": "x"}),
        (parse_completion, {"model": "m", "prompt": [1, 2]}),
    ],
)
@settings(max_examples=150, deadline=None)
@given(changes=given_bodies)
def test_total(parse, base, changes):
    try:
        found = parse(
            {**base, **changes}, Headers(), server=ServerSettings(), routing=RoutingSettings(), now_ms=1_700_000_000_000
        )
    except RequestError as error:
        msgspec.json.encode(error_object(error))
        return
    request = found.request
    assert request.messages
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=type(request)) == request
