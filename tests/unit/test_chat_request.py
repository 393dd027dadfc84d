"""Every parameter of a chat request: valid, at its edges, out of range, unknown, unsupported."""

import msgspec
import pytest
from starlette.datastructures import Headers

from agent.api.chat_request import UNSUPPORTED, parse_chat
from agent.errors import InvalidRequest, TooManyHops
from agent.settings import RoutingSettings, ServerSettings
from agent.types import EgressPolicy, Message, OnLowConfidence, RouteMode, Sampling

NOW = 1_700_000_000_000
USER = {"role": "user", "content": "hi"}


def parse(headers=None, *, server=None, routing=None, **fields):
    raw = [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()]
    return parse_chat(
        {"model": "m", "messages": [USER], **fields},
        Headers(raw=raw),
        server=server or ServerSettings(),
        routing=routing or RoutingSettings(),
        now_ms=NOW,
    )


def refused(headers=None, **fields):
    with pytest.raises(InvalidRequest) as caught:
        parse(headers, **fields)
    return caught.value.param, caught.value.code


def test_the_least_request_has_the_documented_defaults():
    call = parse()
    request = call.request
    assert (call.stream, call.include_usage) == (False, False)
    assert request.sampling == Sampling()
    assert request.messages == (Message("user", "hi"),)
    assert (request.route_mode, request.on_low_confidence, request.egress) == ("local_first", "draft", None)
    assert (request.received_at_ms, request.deadline_at_ms) == (NOW, NOW + 300_000)
    assert (request.idempotency_key, request.hops, request.metadata, request.user) == (None, 0, {}, None)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": 2}, {"temperature": 2.0}),
        ({"temperature": None}, {"temperature": 0.0}),
        ({"top_p": 1}, {"top_p": 1.0}),
        ({"top_p": 0.001}, {"top_p": 0.001}),
        ({"seed": -1}, {"seed": 0xFFFF_FFFF}),
        ({"seed": 7}, {"seed": 7}),
        ({"max_tokens": 1}, {"max_tokens": 1}),
        ({"max_completion_tokens": 9}, {"max_tokens": 9}),
        ({"max_completion_tokens": 9, "max_tokens": 9}, {"max_tokens": 9}),
        ({"min_tokens": 3, "max_tokens": 3}, {"min_tokens": 3}),
        ({"ignore_eos": True, "max_tokens": 9, "min_tokens": 3}, {"min_tokens": 9}),
        ({"ignore_eos": True}, {"min_tokens": 1 << 31, "max_tokens": None}),
        ({"ignore_eos": False}, {"min_tokens": 0}),
        ({"top_k": 40}, {"top_k": 40}),
        ({"top_k": 0}, {"top_k": 0}),
        ({"min_p": 0.05}, {"min_p": 0.05}),
        ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"frequency_penalty": -2, "presence_penalty": 2}, {"frequency_penalty": -2.0, "presence_penalty": 2.0}),
        ({"logit_bias": {"50": -100, "7": 1.5}}, {"logit_bias": ((50, -100.0), (7, 1.5))}),
        ({"logit_bias": {}}, {"logit_bias": ()}),
        ({"n": 1}, {"n": 1}),
        ({"n": 16}, {"n": 16}),
        ({"stop": "END"}, {"stop": ("END",)}),
        ({"stop": ["a", "b", "c", "d"]}, {"stop": ("a", "b", "c", "d")}),
        ({"stop": None}, {"stop": ()}),
        ({"stop": []}, {"stop": ()}),
        ({"logprobs": True}, {"logprobs": True, "top_logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 20}, {"logprobs": True, "top_logprobs": 20}),
    ],
)
def test_sampling_that_is_valid(fields, expected):
    sampling = parse(**fields).request.sampling
    assert {name: getattr(sampling, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"temperature": -0.01}, "temperature", "invalid_value"),
        ({"temperature": 2.01}, "temperature", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_type"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"top_p": 1.1}, "top_p", "invalid_value"),
        ({"seed": 1.0}, "seed", "invalid_type"),
        ({"seed": 1 << 32}, "seed", "invalid_value"),
        ({"seed": -(1 << 31) - 1}, "seed", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
        ({"max_completion_tokens": -1}, "max_completion_tokens", "invalid_value"),
        ({"max_completion_tokens": 1, "max_tokens": 2}, "max_tokens", "invalid_value"),
        ({"min_tokens": -1}, "min_tokens", "invalid_value"),
        ({"min_tokens": 10, "max_tokens": 9}, "min_tokens", "invalid_value"),
        ({"min_tokens": 1, "response_format": {"type": "json_object"}}, "min_tokens", "invalid_value"),
        ({"ignore_eos": 1}, "ignore_eos", "invalid_type"),
        ({"stop": ["a"] * 5}, "stop", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": "x" * 1025}, "stop", "invalid_value"),
        ({"stop": [1]}, "stop", "invalid_type"),
        ({"stop": {"a": 1}}, "stop", "invalid_type"),
        ({"n": True}, "n", "invalid_type"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 17}, "n", "invalid_value"),
        ({"top_k": -1}, "top_k", "invalid_value"),
        ({"top_k": 1.5}, "top_k", "invalid_type"),
        ({"min_p": 1.1}, "min_p", "invalid_value"),
        ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
        ({"repetition_penalty": 2.1}, "repetition_penalty", "invalid_value"),
        ({"frequency_penalty": False}, "frequency_penalty", "invalid_type"),
        ({"presence_penalty": 2.1}, "presence_penalty", "invalid_value"),
        ({"logit_bias": []}, "logit_bias", "invalid_type"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "invalid_value"),
        ({"logit_bias": {"5": "1"}}, "logit_bias.5", "invalid_type"),
        ({"logit_bias": {str(n): 0 for n in range(1025)}}, "logit_bias", "invalid_value"),
        ({"logprobs": 1}, "logprobs", "invalid_type"),
        ({"top_logprobs": 1}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", "unknown_parameter"),
        ({"stream": True, "stream_options": []}, "stream_options", "invalid_type"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
            "unsupported_parameter",
        ),
        ({"user": 5}, "user", "invalid_type"),
        ({"user": "x" * 513}, "user", "invalid_value"),
        ({"metadata": {"a": 1}}, "metadata", "invalid_type"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "invalid_value"),
        ({"metadata": {"k" * 65: ""}}, "metadata", "invalid_value"),
        ({"model": None}, "model", "missing_required_parameter"),
        ({"model": ""}, "model", "missing_required_parameter"),
        ({"model": 3}, "model", "invalid_type"),
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": {}}, "messages", "invalid_type"),
        ({"messages": ["hi"]}, "messages[0]", "invalid_type"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"outrider": {"egres": "never"}}, "outrider.egres", "unknown_parameter"),
        ({"outrider": {"egress": "maybe"}}, "outrider.egress", "invalid_value"),
        ({"outrider": {"route_mode": 3}}, "outrider.route_mode", "invalid_value"),
        ({"outrider": {"on_low_confidence": "guess"}}, "outrider.on_low_confidence", "invalid_value"),
        ({"outrider": {"deadline_ms": 0}}, "outrider.deadline_ms", "invalid_value"),
        ({"outrider": {"deadline_ms": 86_400_001}}, "outrider.deadline_ms", "invalid_value"),
        ({"outrider": {"deadline_ms": "5"}}, "outrider.deadline_ms", "invalid_type"),
        ({"outrider": "never"}, "outrider", "invalid_type"),
    ],
)
def test_what_is_out_of_range_or_unknown_is_refused_by_name(fields, param, code):
    assert refused(**fields) == (param, code)


def test_a_prediction_is_text():
    assert parse().request.prediction == ""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    for content, text in (("the answer", "the answer"), (parts, "a\nb")):
        assert parse(prediction={"type": "content", "content": content}).request.prediction == text


@pytest.mark.parametrize(
    ("prediction", "param"),
    [
        ("text", "prediction"),
        ({"content": "x"}, "prediction.type"),
        ({"type": "content"}, "prediction.content"),
        ({"type": "content", "content": 5}, "prediction.content"),
        ({"type": "content", "content": "x", "more": 1}, "prediction.more"),
    ],
)
def test_a_prediction_that_is_none_is_refused(prediction, param):
    assert refused(prediction=prediction)[0] == param


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_what_is_unsupported_passes_only_where_it_changes_nothing(name):
    parse(**{name: None})
    for value in UNSUPPORTED[name]:
        parse(**{name: value})
    assert refused(**{name: {"surprise": 1}}) == (name, "unsupported_parameter")
    assert refused(**{name: [{"surprise": 1}]}) == (name, "unsupported_parameter")


@pytest.mark.parametrize(("name", "value"), [("store", 0), ("modalities", True)])
def test_true_is_not_one_and_false_is_not_zero(name, value):
    assert refused(**{name: value}) == (name, "unsupported_parameter")


def test_every_parameter_of_the_openai_client_is_known():
    from openai.types.chat import completion_create_params

    for name in completion_create_params.CompletionCreateParamsBase.__annotations__:
        if name not in {"model", "messages"}:
            parse(**{name: None})


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "developer", "content": "be brief"}, Message("system", "be brief")),
        ({"role": "system", "content": "be brief"}, Message("system", "be brief")),
        ({"role": "user", "content": "", "name": "ann"}, Message("user", "", "ann")),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            Message("user", "a\nb"),
        ),
        (
            {"role": "assistant", "content": "x", "refusal": None, "tool_calls": [], "annotations": []},
            Message("assistant", "x"),
        ),
        ({"role": "assistant", "content": None, "refusal": "no"}, Message("assistant", "no")),
    ],
)
def test_messages_that_are_valid(message, expected):
    assert parse(messages=[USER, message]).request.messages[1] == expected


@pytest.mark.parametrize(
    ("message", "param", "code"),
    [
        ({"content": "x"}, "messages[0].role", "missing_required_parameter"),
        ({"role": "robot", "content": "x"}, "messages[0].role", "invalid_value"),
        ({"role": "tool", "content": "x"}, "messages[0].tool_call_id", "missing_required_parameter"),
        ({"role": "tool", "content": "x", "tool_call_id": "c"}, "messages[0].tool_call_id", "invalid_value"),
        ({"role": "user", "content": "x", "tool_calls": []}, "messages[0].tool_calls", "unknown_parameter"),
        ({"role": "user"}, "messages[0].content", "missing_required_parameter"),
        ({"role": "user", "content": 5}, "messages[0].content", "invalid_type"),
        ({"role": "user", "content": []}, "messages[0].content", "invalid_type"),
        ({"role": "user", "content": ["a"]}, "messages[0].content[0]", "invalid_type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text", "invalid_type"),
        (
            {"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "messages[0].content[0].type",
            "unsupported_parameter",
        ),
        (
            {"role": "user", "content": [{"type": "hologram"}]},
            "messages[0].content[0].type",
            "unsupported_parameter",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]},
            "messages[0].content[0].image_url",
            "invalid_type",
        ),
        (
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {"format": "wav"}}]},
            "messages[0].content[0].input_audio.data",
            "missing_required_parameter",
        ),
        ({"role": "user", "content": "x", "colour": 1}, "messages[0].colour", "unknown_parameter"),
        ({"role": "user", "content": "x", "name": "n" * 65}, "messages[0].name", "invalid_value"),
        (
            {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]},
            "messages[0].tool_calls[0].function",
            "missing_required_parameter",
        ),
    ],
)
def test_messages_that_are_refused(message, param, code):
    assert refused(messages=[message]) == (param, code)


def test_the_number_of_messages_is_bounded():
    server = ServerSettings(max_messages=3)
    assert len(parse(server=server, messages=[USER] * 3).request.messages) == 3
    with pytest.raises(InvalidRequest, match="at most 3"):
        parse(server=server, messages=[USER] * 4)


def test_extension_in_the_body_and_in_headers():
    headers = {
        "x-outrider-on-low-confidence": "abstain",
        "x-outrider-route-mode": "local_only",
        "x-outrider-egress": "never",
        "x-outrider-deadline-ms": "1500",
    }
    body = {"on_low_confidence": "abstain", "route_mode": "local_only", "egress": "never", "deadline_ms": 1500}
    for call in (parse(headers), parse(outrider=body), parse(headers, outrider=body)):
        request = call.request
        assert request.on_low_confidence is OnLowConfidence.ABSTAIN
        assert request.route_mode is RouteMode.LOCAL_ONLY
        assert request.egress is EgressPolicy.NEVER
        assert request.deadline_at_ms == NOW + 1500


def test_a_contradiction_of_body_and_header_is_refused():
    assert refused({"x-outrider-egress": "allow"}, outrider={"egress": "never"}) == ("outrider.egress", "contradiction")
    assert refused({"x-outrider-deadline-ms": "x"}) == ("outrider.deadline_ms", "invalid_type")


def test_a_misspelt_header_is_refused():
    assert refused({"x-outrider-egres": "never"}) == ("x-outrider-egres", "unknown_parameter")


def test_the_configuration_gives_the_defaults():
    routing = RoutingSettings(mode=RouteMode.LOCAL_ONLY, on_low_confidence=OnLowConfidence.ABSTAIN)
    server = ServerSettings(request_timeout_s=2.5)
    request = parse(routing=routing, server=server).request
    assert (request.route_mode, request.on_low_confidence) == ("local_only", "abstain")
    assert request.deadline_at_ms == NOW + 2500


def test_hops():
    assert parse({"x-outrider-hops": "2"}).request.hops == 2
    for text in ("3", "40"):
        with pytest.raises(TooManyHops):
            parse({"x-outrider-hops": text})
    assert refused({"x-outrider-hops": "-1"})[1] == "invalid_value"
    assert refused({"x-outrider-hops": "many"})[1] == "invalid_value"


@pytest.mark.parametrize("key", ["", " ", "a" * 256, "caf\xe9", "a\tb"])
def test_idempotency_keys_that_are_refused(key):
    raw = Headers(raw=[(b"idempotency-key", key.encode("latin-1"))])
    with pytest.raises(InvalidRequest) as caught:
        parse_chat(
            {"model": "m", "messages": [USER]}, raw, server=ServerSettings(), routing=RoutingSettings(), now_ms=NOW
        )
    assert caught.value.param == "idempotency-key"


def test_the_digest_is_of_the_meaning_not_of_the_spelling():
    one = msgspec.json.decode(b'{"model":"m","messages":[{"role":"user","content":"\\u0068i"}],"seed":1}')
    two = msgspec.json.decode(b'{ "seed": 1, "messages": [{"content": "hi", "role": "user"}], "model": "m" }')
    settings = {"server": ServerSettings(), "routing": RoutingSettings(), "now_ms": NOW}
    digests = {parse_chat(body, Headers(raw=[]), **settings).request.body_sha256 for body in (one, two)}
    assert len(digests) == 1
    assert parse().request.body_sha256 != parse(seed=1).request.body_sha256
    assert parse().request.body_sha256 != parse({"x-outrider-egress": "never"}).request.body_sha256
