"""Corners of the outcome table; its rows are shown over real HTTP in integration/test_openai_target.py."""

import json

import msgspec
import pytest
from fakes.cloud import completion
from fakes.escalation_values import record, row

from agent.escalation.replies import LONGEST_RETRY_AFTER_MS, HttpReply, read_probe, read_reply, retry_after
from agent.escalation.target import UNCOUNTED, Blocked, Delivered, Held, Offline, Online, RateLimited, Rejected, Retry
from agent.storage.costs import Used
from agent.structure import FormatKind, OutputFormat, ToolFunction, Tools

TOOLS = Tools(functions=(ToolFunction(name="now"),))
JSON = OutputFormat(kind=FormatKind.JSON_SCHEMA, source="{}")
ENUM = OutputFormat(kind=FormatKind.ENUM, source='["yes", "no"]')
NOW = 1_700_000_000_000


def read(status, body=b"", headers=None, **asked):
    raw = json.dumps(body).encode() if isinstance(body, dict) else body
    return read_reply(HttpReply(status, headers or {}, raw), record(**asked), row(), now_ms=NOW)


def test_an_answer_keeps_what_the_target_says_of_itself():
    outcome = read(200, completion("Paris", finish_reason="length"))
    assert isinstance(outcome, Delivered)
    answer = outcome.answer
    assert (answer.text, answer.finish_reason, answer.model) == ("Paris", "length", "cloud-model")
    assert (answer.prompt_tokens, answer.output_tokens, answer.verdict) == (7, 3, None)
    assert len(answer.raw_sha256) == 64


@pytest.mark.parametrize(
    ("headers", "wait_ms"),
    [
        ({"retry-after": "7"}, 7_000),
        ({"retry-after": "1.5"}, 1_500),
        ({"retry-after-ms": "2500"}, 2_500),
        ({"retry-after-ms": "2500", "retry-after": "60"}, 2_500),
        ({"retry-after": "0"}, 1_000),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:50 GMT"}, 30_000),
        ({"retry-after": "Tue, 14 Nov 2000 22:13:50 GMT"}, 1_000),
        ({"retry-after": "999999999"}, LONGEST_RETRY_AFTER_MS),
        ({"retry-after": "Tue, 14 Nov 2099 22:13:50 GMT"}, LONGEST_RETRY_AFTER_MS),
    ],
)
def test_retry_after_is_read_in_every_form(headers, wait_ms):
    assert retry_after(headers, NOW) == NOW + wait_ms


@pytest.mark.parametrize(
    "headers", [{}, {"retry-after": "soon"}, {"retry-after": "-3"}, {"retry-after": "nan"}, {"retry-after-ms": "inf"}]
)
def test_an_unreadable_retry_after_is_none(headers):
    assert retry_after(headers, NOW) is None


def test_the_message_of_a_target_never_becomes_a_reason():
    outcome = read(400, {"error": {"message": "your prompt 'my secret' is bad", "code": "bad my secret prompt"}})
    assert outcome == Rejected("400")
    outcome = read(400, {"error": {"message": "my secret", "code": "context_length_exceeded"}})
    assert outcome == Rejected("400 (context_length_exceeded)")


def test_the_thoughts_of_a_target_are_left_out():
    reply = completion("Paris")
    reply["choices"][0]["message"] |= {"reasoning_content": "musings", "reasoning": "musings"}
    outcome = read(200, reply)
    assert isinstance(outcome, Delivered)
    assert b"musings" not in msgspec.msgpack.encode(outcome.answer)


def test_an_answer_without_choices_is_rejected():
    assert read(200, {"choices": []}) == Rejected("the answer has no choices", used=Used(0, 0))


def test_a_refusal_is_rejected():
    body = completion(None)
    body["choices"][0]["message"]["refusal"] = "I will not."
    # What is of no use was counted all the same.
    assert read(200, body) == Rejected("the target's model refuses", used=Used(7, 3, "cloud-model"))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"status": "log in"}', b"\xff\xfe"])
def test_other_json_is_a_portal(body):
    outcome = read(200, body)
    assert isinstance(outcome, Offline)
    assert outcome.portal
    assert outcome.left


@pytest.mark.parametrize(
    "body", [b'{"choices": 3}', b'{"choices": [{"message": {"content": 7}}]}', b'{"choices": [], "outrider": 1}']
)
def test_an_odd_completion_is_no_portal(body):
    assert read(200, body) == Rejected("the answer cannot be read as a chat completion", used=UNCOUNTED)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": None, "completion_tokens": 4}, (0, 4)),
        ({"prompt_tokens": "7", "completion_tokens": -1}, (0, 0)),
        ({"prompt_tokens": 1.5, "completion_tokens": 1 << 80}, (0, 0)),
        ([], (0, 0)),
        (None, (0, 0)),
    ],
)
def test_odd_usage_costs_no_answer(usage, tokens):
    outcome = read(200, {**completion("Paris"), "usage": usage})
    assert isinstance(outcome, Delivered)
    assert (outcome.answer.prompt_tokens, outcome.answer.output_tokens) == tokens


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        ({"code": "content_policy_violation"}, Rejected("403 (content_policy_violation)")),
        ({"type": "moderation_blocked"}, Rejected("403 (moderation_blocked)")),
        ({"code": "key_disabled"}, Blocked("403: the API key may not do this (key_disabled)")),
    ],
)
def test_a_403_about_this_text_blocks_nobody_else(error, outcome):
    assert read(403, {"error": error}) == outcome


def test_json_as_deep_as_a_well_is_a_portal_and_no_crash():
    outcome = read(200, b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b',"choices":[]}')
    assert isinstance(outcome, Offline | Rejected)


@pytest.mark.parametrize(
    ("told", "outcome"),
    [
        ({"decision": "answered"}, Delivered),
        ({"decision": "uncertain", "reason": "low_confidence"}, Rejected),
        ({"decision": "queued"}, Held),
        ({"decision": "queued", "state": "queued"}, Held),
        ({"decision": "queued", "state": "resolved"}, Delivered),
        ({"decision": "queued", "state": "unresolved"}, Rejected),
        ({"decision": "queued", "state": "cancelled"}, Rejected),
    ],
)
def test_the_answer_of_another_outrider(told, outcome):
    assert isinstance(read(200, completion("text", outrider=told)), outcome)


def test_a_loop_of_outriders_ends():
    assert read(508, {"error": {"code": "too_many_hops"}}) == Rejected("508: too_many_hops")
    assert isinstance(read(508), Retry)


def test_too_much_to_ask_is_not_a_portal():
    assert isinstance(read(511), Offline)
    assert isinstance(read(202), Held)
    assert isinstance(read(204), Offline)


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (200, b'{"object": "list", "data": []}', Online()),
        (200, b"<html>", Offline("200, but not a list of models: something else answers", portal=True)),
        (302, b"", Offline("302: redirected elsewhere, not followed", portal=True)),
        (500, b"", Offline("500")),
        (503, b"", Offline("503")),
        (401, b"", Blocked("401: the API key is refused", left=False)),
        (405, b"", Blocked("405: refused", left=False)),
        (429, b"", RateLimited("429", left=False)),
        (429, b'{"error": {"code": "insufficient_quota"}}', Blocked("429: refused (insufficient_quota)", left=False)),
    ],
)
def test_a_probe(status, body, outcome):
    assert read_probe(HttpReply(status, {}, body), now_ms=NOW) == outcome


def test_a_probe_with_a_wrong_address_says_what_to_mend():
    outcome = read_probe(HttpReply(404, {}, b""), now_ms=NOW)
    assert isinstance(outcome, Blocked)
    assert "/v1" in outcome.reason


def called(name):
    call = {"id": "c1", "type": "function", "function": {"name": name, "arguments": '{"a": 1}'}}
    choice = {"message": {"content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}
    return {"choices": [choice], "model": "big"}


def test_a_call_of_a_known_tool_is_an_answer():
    answer = read(200, called("now"), tools=TOOLS).answer
    assert [(call.id, call.name, call.arguments) for call in answer.tool_calls] == [("c1", "now", '{"a": 1}')]
    assert (answer.text, answer.finish_reason) == ("", "tool_calls")


def test_a_call_of_anything_else_is_none():
    assert isinstance(read(200, called("rm"), tools=TOOLS), Rejected)
    assert isinstance(read(200, called("now")), Rejected)


def test_an_answer_without_the_format_that_was_asked_for_is_rejected():
    assert isinstance(read(200, completion("Here you are: {}"), response_format=JSON), Rejected)
    assert isinstance(read(200, completion('{"a": 1}'), response_format=JSON), Delivered)
    assert isinstance(read(200, completion("perhaps"), response_format=ENUM), Rejected)
    assert read(200, completion(" yes\n"), response_format=ENUM).answer.text == "yes"
