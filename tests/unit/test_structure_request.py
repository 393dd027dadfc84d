"""response_format and tools: what is taken, what is refused by name, what is bounded."""

import json

import pytest
from starlette.datastructures import Headers

from agent.api.chat_request import parse_chat
from agent.errors import InvalidRequest
from agent.settings import RoutingSettings, ServerSettings
from agent.structure import FormatKind, OutputFormat, ToolCall, ToolChoice, ToolFunction, Tools
from agent.types import Message

USER = {"role": "user", "content": "hi"}
NOW = {"type": "function", "function": {"name": "now"}}
SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}}


def parse(**fields):
    body = {"model": "m", "messages": [USER], **fields}
    return parse_chat(body, Headers(), server=ServerSettings(), routing=RoutingSettings(), now_ms=1).request


def refused(**fields):
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    return caught.value.param, caught.value.code


def test_plain_text_is_no_format():
    request = parse(response_format={"type": "text"}, tools=[], tool_choice="auto", parallel_tool_calls=True)
    assert (request.response_format, request.tools) == (None, None)


def test_a_schema_keeps_its_order():
    given = {"name": "thing", "schema": SCHEMA, "strict": True, "description": "a thing"}
    found = parse(response_format={"type": "json_schema", "json_schema": given}).response_format
    assert found == OutputFormat(
        kind=FormatKind.JSON_SCHEMA, source=json.dumps(SCHEMA), name="thing", description="a thing", strict=True
    )


@pytest.mark.parametrize(
    ("given", "kind", "source"),
    [
        ({"type": "json_object"}, FormatKind.JSON_OBJECT, ""),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, FormatKind.JSON_SCHEMA, '{"type": "object"}'),
        ({"type": "enum", "values": ["ja", "nö", "ja"]}, FormatKind.ENUM, '["ja", "nö"]'),
        ({"type": "regex", "regex": "[0-9]+"}, FormatKind.REGEX, "[0-9]+"),
        ({"type": "grammar", "grammar": 'start: "a"'}, FormatKind.GRAMMAR, 'start: "a"'),
    ],
)
def test_every_format(given, kind, source):
    found = parse(response_format=given).response_format
    assert (found.kind, found.source) == (kind, source)


def test_tools():
    weather = {"name": "weather", "description": "of a city", "parameters": SCHEMA, "strict": False}
    request = parse(tools=[NOW, {"type": "function", "function": weather}], parallel_tool_calls=False)
    assert request.tools == Tools(
        functions=(
            ToolFunction(name="now"),
            ToolFunction(name="weather", description="of a city", parameters=json.dumps(SCHEMA), strict=False),
        ),
        parallel=False,
    )


@pytest.mark.parametrize("choice", list(ToolChoice))
def test_every_choice(choice):
    assert parse(tools=[NOW], tool_choice=choice.value).tools.choice is choice


def test_a_named_function_is_the_only_one():
    named = {"type": "function", "function": {"name": "now"}}
    tools = parse(tools=[NOW, {"type": "function", "function": {"name": "b"}}], tool_choice=named).tools
    assert (tools.choice, [function.name for function in tools.callable]) == (ToolChoice.REQUIRED, ["now"])


def test_calls_and_results_in_the_history():
    call = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    asked = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "c1", "content": "noon"}
    assert parse(messages=[USER, asked, result]).messages[1:] == (
        Message("assistant", "", tool_calls=(ToolCall(id="c1", name="now", arguments="{}"),)),
        Message("tool", "noon", tool_call_id="c1"),
    )


def schema(**given):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": given}}}


def tool(**given):
    return {"tools": [{"type": "function", "function": {"name": "f", **given}}]}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"response_format": "json"}, "response_format", "invalid_type"),
        ({"response_format": {}}, "response_format.type", "missing_required_parameter"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "text", "x": 1}}, "response_format.x", "unknown_parameter"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "missing_required_parameter",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
            "missing_required_parameter",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": True}}},
            "response_format.json_schema.schema",
            "invalid_type",
        ),
        (schema(const="x" * 70_000), "response_format.json_schema.schema", "invalid_value"),
        (schema(enum=[[] for _ in range(5000)]), "response_format.json_schema.schema", "invalid_value"),
        (schema(items={"multipleOf": 299_993}), "response_format.json_schema.schema", "invalid_value"),
        (schema(items={"multipleOf": 0.000299993}), "response_format.json_schema.schema", "invalid_value"),
        ({"response_format": {"type": "enum"}}, "response_format.values", "missing_required_parameter"),
        ({"response_format": {"type": "enum", "values": [1]}}, "response_format.values", "invalid_value"),
        ({"response_format": {"type": "enum", "values": [""]}}, "response_format.values", "invalid_value"),
        ({"response_format": {"type": "enum", "values": ["x"] * 1001}}, "response_format.values", "invalid_value"),
        ({"response_format": {"type": "regex"}}, "response_format.regex", "missing_required_parameter"),
        ({"response_format": {"type": "regex", "regex": "a" * 4097}}, "response_format.regex", "invalid_value"),
        ({"response_format": {"type": "regex", "regex": "a"}, "tools": [NOW]}, "response_format", "invalid_value"),
        ({"response_format": {"type": "json_object"}, "stop": "}"}, "stop", "invalid_value"),
        ({"tools": [NOW], "stop": "}"}, "stop", "invalid_value"),
        ({"tools": {}}, "tools", "invalid_type"),
        ({"tools": [5]}, "tools[0]", "invalid_type"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_required_parameter"),
        ({"tools": [NOW, NOW]}, "tools", "invalid_value"),
        ({"tools": [NOW] * 65}, "tools", "invalid_value"),
        (tool(name="a b"), "tools[0].function.name", "invalid_value"),
        (tool(parameters=[]), "tools[0].function.parameters", "invalid_type"),
        (tool(color="red"), "tools[0].function.color", "unknown_parameter"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tools": [NOW], "tool_choice": "always"}, "tool_choice", "invalid_value"),
        (
            {"tools": [NOW], "tool_choice": {"type": "function", "function": {"name": "later"}}},
            "tool_choice",
            "invalid_value",
        ),
        ({"tools": [NOW], "parallel_tool_calls": 1}, "parallel_tool_calls", "invalid_type"),
    ],
)
def test_what_is_wrong_is_refused_by_name(fields, param, code):
    assert refused(**fields) == (param, code)


@pytest.mark.parametrize("arguments", ["", "{", "[]", "5", '{"a": 1} x'])
def test_arguments_in_the_history_are_json_objects(arguments):
    call = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": arguments}}
    messages = [USER, {"role": "assistant", "tool_calls": [call]}]
    if arguments == "":
        assert parse(messages=messages).messages[1].tool_calls[0].arguments == "{}"
    else:
        assert refused(messages=messages)[0] == "messages[1].tool_calls[0].function.arguments"
