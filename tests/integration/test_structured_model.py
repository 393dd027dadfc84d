"""The openai client against a real daemon with real weights: formats, tools, streams, log-probabilities."""

import json
from typing import Literal

import openai
import pydantic
import pytest
from fakes.daemon_process import DaemonProcess

pytestmark = pytest.mark.model
MODEL = "smollm2-135m-instruct"
CONFIG = """
[engine]
threads = 1
context_tokens = 1024
"""
EXTRACT = [{"role": "user", "content": "Extract: John Smith, 42 years old, lives in Paris."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
ASK = [{"role": "user", "content": "What is the weather in Paris?"}]


class Person(pydantic.BaseModel):
    name: str
    age: int = pydantic.Field(ge=0, le=150)
    city: Literal["Paris", "Berlin"] | None


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    daemon = DaemonProcess(tmp_path_factory.mktemp("device"), CONFIG, real=True)
    daemon.start()
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key=daemon.token(), max_retries=0) as found:
        yield found
    assert daemon.stop() == 0, daemon.log()


def ask(client, messages=ASK, **given):
    return client.chat.completions.create(model=MODEL, messages=messages, **({"max_tokens": 80} | given))


def streamed(client, **given):
    """Return the message put together from a stream, its finish reason, its log-probabilities and the verdict."""
    content, calls, logprobs, reason, verdict = "", {}, [], None, None
    for chunk in ask(client, stream=True, **given):
        verdict = chunk.model_extra.get("outrider") or verdict
        for choice in chunk.choices:
            reason = choice.finish_reason or reason
            content += choice.delta.content or ""
            logprobs += choice.logprobs.content if choice.logprobs else []
            for piece in choice.delta.tool_calls or []:
                call = calls.setdefault(piece.index, {"id": piece.id, "name": piece.function.name, "arguments": ""})
                call["arguments"] += piece.function.arguments
    return content, list(calls.values()), reason, logprobs, verdict


def test_a_chat_is_the_same_whole_and_streamed_with_log_probabilities(client):
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    whole = ask(client, asked, logprobs=True, top_logprobs=2).choices[0]
    assert "Paris" in whole.message.content
    assert whole.finish_reason == "stop"
    text, calls, reason, logprobs, verdict = streamed(client, messages=asked, logprobs=True, top_logprobs=2)
    assert (text, calls, reason) == (whole.message.content, [], "stop")
    assert [token.token for token in logprobs] == [token.token for token in whole.logprobs.content]
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in logprobs)
    assert verdict["confidence"] > 0.5


def test_a_pydantic_model_comes_back_parsed(client):
    answer = client.chat.completions.parse(model=MODEL, messages=EXTRACT, response_format=Person, max_tokens=80)
    person = answer.choices[0].message.parsed
    assert (person.name, person.age, person.city) == ("John Smith", 42, "Paris")
    assert answer.choices[0].finish_reason == "stop"
    # Keys and punctuation are left out of the score: the values are what the model is sure of.
    verdict = answer.model_extra["outrider"]
    assert verdict["confidence"] > 0.5
    (fields,) = verdict["fields"]
    assert list(fields) == ["/name", "/age", "/city"]
    assert all(0.3 < field["confidence"] <= 1 for field in fields.values())
    # Only the city may be null.
    assert [field["null_probability"] is None for field in fields.values()] == [True, True, False]


def test_a_stream_validates_too_and_has_the_log_probabilities_of_every_token(client):
    schema = {"name": "person", "schema": Person.model_json_schema()}
    given = {"messages": EXTRACT, "response_format": {"type": "json_schema", "json_schema": schema}}
    text, _, reason, logprobs, verdict = streamed(client, logprobs=True, top_logprobs=2, **given)
    assert Person.model_validate_json(text)
    assert reason == "stop"
    assert b"".join(bytes(token.bytes) for token in logprobs).decode() == text
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in logprobs)
    assert verdict["decision"] == "answered"
    assert set(verdict["fields"][0]) == {"/name", "/age", "/city"}


def test_what_is_not_there_may_be_null(client):
    schema = {"type": "object", "properties": {"name": {"type": "string"}, "phone": {"type": "string"}}}
    schema |= {"required": ["name", "phone"], "additionalProperties": False}
    given = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    asked = [{"role": "user", "content": EXTRACT[0]["content"] + " Use null for what is not said."}]
    answer = ask(client, asked, response_format=given, extra_body={"outrider": {"nullable_fields": True}})
    found = json.loads(answer.choices[0].message.content)
    assert all(found[name] is None or isinstance(found[name], str) for name in ("name", "phone"))
    (fields,) = answer.model_extra["outrider"]["fields"]
    assert all(0 <= fields[name]["null_probability"] <= 1 for name in ("/name", "/phone"))


def test_any_json_object(client):
    answer = ask(client, EXTRACT, response_format={"type": "json_object"}, max_tokens=120, temperature=0.3, seed=2)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ({"type": "enum", "values": ["yes", "no"]}, {"yes", "no"}),
        ({"type": "regex", "regex": "19[34][0-9]"}, {str(year) for year in range(1930, 1950)}),
        ({"type": "grammar", "grammar": 'root ::= "a" | "b"'}, {"a", "b"}),
    ],
)
def test_enum_regex_and_grammar(client, given, allowed):
    asked = [{"role": "user", "content": "When did the second world war end?"}]
    assert ask(client, asked, response_format=given).choices[0].message.content in allowed


def test_a_tool_is_called_and_its_result_is_answered(client):
    answer = ask(client, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert json.loads(call.function.arguments)["city"] == "Paris"
    history = [
        *ASK,
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": '{"temperature_celsius": 31, "sky": "clear"}'},
    ]
    last = ask(client, history, tools=[WEATHER], tool_choice="none")
    assert last.choices[0].message.tool_calls is None
    assert last.choices[0].message.content


def test_calls_stream_with_their_log_probabilities(client):
    text, calls, reason, logprobs, verdict = streamed(
        client, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, logprobs=True
    )
    assert (text, reason) == ("", "tool_calls")
    assert [call["name"] for call in calls] == ["get_weather"]
    assert calls[0]["id"].startswith("call_")
    assert json.loads(calls[0]["arguments"])["city"]
    assert verdict["fields"][0]["/tool_calls/0/function/arguments/city"]["confidence"] > 0.3
    whole = b"".join(bytes(token.bytes) for token in logprobs).decode()
    assert whole.startswith("<tool_call>")
    assert calls[0]["arguments"] in whole


def test_a_named_tool_and_none(client):
    named = {"type": "function", "function": {"name": "now"}}
    (call,) = ask(client, tools=[WEATHER, NOW], tool_choice=named).choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("now", "{}")
    answer = ask(client, tools=[WEATHER], tool_choice="none", max_tokens=8)
    assert answer.choices[0].message.tool_calls is None


def test_auto_answers_or_calls(client):
    message = ask(client, tools=[WEATHER], temperature=1.0, seed=3).choices[0].message
    assert message.content or message.tool_calls


def test_a_schema_that_cannot_be_enforced_is_refused_with_the_reason(client):
    schema = {"name": "x", "schema": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems") as caught:
        ask(client, response_format={"type": "json_schema", "json_schema": schema})
    assert caught.value.param == "response_format"


def test_two_answers_with_extra_sampling(client):
    asked = [{"role": "user", "content": "Name an animal."}]
    extra = {"top_k": 50, "min_p": 0.02, "repetition_penalty": 1.1}
    answer = ask(client, asked, n=2, temperature=1.3, seed=4, max_tokens=10, logprobs=True, extra_body=extra)
    first, second = answer.choices
    assert (first.index, second.index) == (0, 1)
    assert first.message.content != second.message.content
    for choice in answer.choices:
        assert choice.logprobs.content
    texts = {0: "", 1: ""}
    for chunk in ask(client, asked, n=2, temperature=1.3, seed=4, max_tokens=10, stream=True, extra_body=extra):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert all(texts.values())


def test_an_answer_cut_off_inside_its_format_is_never_sure(client):
    answer = ask(client, EXTRACT, response_format={"type": "json_object"}, max_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.model_extra["outrider"]["confidence"] == 0.0
