"""Whatever JSON comes, parsing ends in a valid call or in an error that names a parameter."""

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers

from agent.api.chat_request import UNSUPPORTED, parse_chat
from agent.api.wire import error_object, parse_json
from agent.errors import InvalidRequest, RequestError
from agent.settings import RoutingSettings, ServerSettings

NAMES = [
    *UNSUPPORTED, "model", "messages", "temperature", "top_p", "seed", "max_tokens", "max_completion_tokens", "stop",
    "logprobs", "top_logprobs", "stream", "stream_options", "user", "metadata", "outrider",
]  # fmt: skip
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "assistant", "tool"]), "content": values}),
    max_size=3,
)
bodies = st.dictionaries(st.sampled_from(NAMES), values, max_size=6).flatmap(
    lambda body: messages.map(lambda found: {"model": "m", "messages": found, **body})
)


@settings(max_examples=150, deadline=None)
@given(
    bodies,
    st.dictionaries(
        st.sampled_from(["x-outrider-egress", "x-outrider-hops", "idempotency-key"]), st.text("ab1- ", max_size=4)
    ),
)
def test_total(body, headers):
    raw = Headers(raw=[(name.encode(), text.encode()) for name, text in headers.items()])
    try:
        call = parse_chat(body, raw, server=ServerSettings(), routing=RoutingSettings(), now_ms=1_700_000_000_000)
    except RequestError as error:
        msgspec.json.encode(error_object(error))
        return
    assert 0 <= call.request.sampling.temperature <= 2
    assert 0 < call.request.sampling.top_p <= 1
    assert call.request.messages
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(call.request), type=type(call.request)) == call.request


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60) | values.map(msgspec.json.encode))
def test_bytes_are_parsed_or_refused(raw):
    try:
        found = parse_json(raw)
    except InvalidRequest as error:
        found = {"refused": error.code}
        assert error.code == "invalid_json"  # noqa: PT017 - both ends are right
    assert isinstance(found, dict)
