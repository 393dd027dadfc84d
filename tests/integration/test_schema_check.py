"""What a target answers is held against what was asked for, in a child that cannot hold up the daemon."""

import json
import time

import pytest
from fakes import cloud as fake
from fakes.cloud import Cloud
from fakes.escalation_values import record, row

from agent.escalation import schema_check
from agent.escalation.openai_target import OpenAITarget
from agent.escalation.schema_validator import fault
from agent.escalation.target import Delivered, Rejected
from agent.records import CloudAnswer
from agent.settings import ConnectivitySettings, TargetSettings
from agent.structure import FormatKind, OutputFormat, ToolFunction, Tools
from agent.text_settings import RedactionSettings
from agent.types import EgressPolicy

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": ["integer", "null"], "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
BOMB = {
    "$ref": "#/$defs/n0",
    "$defs": {f"n{i}": {"anyOf": [{"$ref": f"#/$defs/n{i + 1}"}] * 2} for i in range(60)} | {"n60": {"type": "string"}},
}


def as_schema(schema):
    return OutputFormat(kind=FormatKind.JSON_SCHEMA, source=json.dumps(schema))


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ('{"name": "Zoë", "age": 4}', None),
        (' {"age": null, "name": ""}\n', None),
        ('{"name": "secret"}', "required is not satisfied"),
        ('{"name": "secret", "age": "4"}', "type is not satisfied"),
        ('{"name": "secret", "age": -1}', "minimum is not satisfied"),
        ('{"name": "secret", "age": 1, "more": 2}', "additionalProperties is not satisfied"),
        ('```json\n{"name": "secret", "age": 4}\n```', "it is not JSON"),
        ('{"name": "secret", "ag', "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
    ],
)
def test_the_fault_is_named_without_any_text(document, said):
    assert fault(json.dumps(PERSON), document) == said


@pytest.mark.parametrize(
    "schema", [{"$ref": "http://127.0.0.1:9/elsewhere"}, {"type": "strin"}, {"$ref": "#/$defs/none"}, {"pattern": "("}]
)
def test_a_schema_that_cannot_be_used(schema):
    assert fault(json.dumps(schema), '"x"') == "the schema cannot be used"


def test_a_schema_in_a_circle_ends():
    assert fault('{"allOf": [{"$ref": "#"}]}', "1") in {None, "allOf is not satisfied"}


def test_formats_and_older_drafts():
    assert fault('{"format": "date"}', '"2026-02-30"') == "format is not satisfied"
    draft7 = {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"a": {"type": "null"}}}
    assert fault(json.dumps(draft7 | {"$ref": "#/definitions/a"}), "1") == "type is not satisfied"


async def test_a_schema_bomb_is_over_in_time():
    began = time.monotonic()
    answer = CloudAnswer(text="1", finish_reason="stop", model="big")
    request = record(response_format=as_schema(BOMB)).request
    assert await schema_check.fault(answer, request, limit_s=1.5) == "it cannot be checked within 1.5 s"
    assert time.monotonic() - began < 30


def calling(arguments):
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": arguments}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}], "model": "big-model"}
    return fake.raw(200, json.dumps(body).encode())


TOOLS = Tools(functions=(ToolFunction(name="find", parameters=json.dumps(PERSON)),))


@pytest.mark.parametrize(
    ("reply", "asked", "said"),
    [
        (fake.ok('{"name": "Ann", "age": 4}'), {"response_format": as_schema(PERSON)}, None),
        (fake.ok('{"name": "Ann"}'), {"response_format": as_schema(PERSON)}, "required is not satisfied"),
        (fake.ok("2026"), {"response_format": OutputFormat(kind=FormatKind.REGEX, source="[0-9]{4}")}, None),
        (
            fake.ok("2026 or so"),
            {"response_format": OutputFormat(kind=FormatKind.REGEX, source="[0-9]{4}")},
            "pattern is not satisfied",
        ),
        (calling('{"name": "Ann", "age": 4}'), {"tools": TOOLS}, None),
        (calling('{"name": 4}'), {"tools": TOOLS}, "required is not satisfied"),
        (calling('{"name": '), {"tools": TOOLS}, "it is not JSON"),
    ],
)
async def test_an_answer_that_does_not_validate_is_not_used(reply, asked, said):
    async with Cloud() as cloud:
        cloud.script(reply)
        settings = TargetSettings(name="big", base_url=cloud.base_url, model="big-model", egress=EgressPolicy.ALLOW)
        target = OpenAITarget(
            settings, ConnectivitySettings(connect_timeout_s=2.0), RedactionSettings(), now_ms=lambda: 0
        )
        held, waiting = record(**asked), row()
        outcome = await target.send(waiting, held, target.outgoing(held, waiting))
        await target.close()
    if said is None:
        assert isinstance(outcome, Delivered), outcome
    else:
        assert isinstance(outcome, Rejected)
        assert outcome.reason == f"the answer is not what was asked for: {said}"
