"""Fields that must be there may be null; nothing else of a schema changes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.api.chat_request import parse_chat
from agent.api.nullable_schema import with_nullable_fields
from agent.errors import InvalidRequest
from agent.escalation.schema_validator import fault
from agent.settings import RoutingSettings, ServerSettings


def widened(schema):
    return json.loads(with_nullable_fields(json.dumps(schema)))


def of(**properties):
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def test_required_leaves_may_be_null():
    text, number = {"type": "string", "maxLength": 5}, {"enum": [1, 2]}
    assert widened(of(a=text, b=number)) == of(
        a={"anyOf": [text, {"type": "null"}]}, b={"anyOf": [number, {"type": "null"}]}
    )


@pytest.mark.parametrize(
    "field",
    [
        {"const": "circle"},
        {"enum": ["circle"]},
        {"type": ["string", "null"]},
        {"type": "null"},
        {"enum": ["a", None]},
        {"anyOf": [{"type": "string"}, {"type": "null"}]},
        {"type": "array", "items": {"type": "string"}},
        {"type": "object"},
        {"anyOf": [{"type": "string"}, {"type": "array"}]},
        {"$ref": "#"},
        True,
    ],
)
def test_what_stays_as_it_is(field):
    assert widened(of(a=field)) == of(a=field)


def test_what_is_not_required_stays():
    schema = of(a={"type": "string"}) | {"required": []}
    assert widened(schema) == schema


def test_leaves_of_parts_lists_branches_and_definitions():
    leaf, wide = {"type": "integer"}, {"anyOf": [{"type": "integer"}, {"type": "null"}]}

    def schema(field, reference):
        inner = of(x=field)
        return of(
            part=inner,
            rows={"type": "array", "items": inner},
            either={"anyOf": [inner, {"type": "array"}]},
            elsewhere={"$ref": "#/$defs/inner"},
            kind=reference,
        ) | {"$defs": {"inner": inner, "kind": {"enum": ["a", "b"]}}}

    reference = {"$ref": "#/$defs/kind"}
    assert widened(schema(leaf, reference)) == schema(wide, {"anyOf": [reference, {"type": "null"}]})


def test_names_and_values_that_look_like_keywords():
    schema = of(properties={"type": "string"}, enum={"enum": [{"properties": {"x": {}}, "required": ["x"]}, 2]})
    found = widened(schema)
    assert found["properties"]["enum"]["anyOf"][0] == schema["properties"]["enum"]


def test_deep_and_circular_schemas_end():
    schema = {"type": "string"}
    for _ in range(400):
        schema = of(a=schema)
    assert '"null"' in with_nullable_fields(json.dumps(schema))
    loop = {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}] * 30}, "b": {"anyOf": [{"$ref": "#/$defs/a"}] * 30}}}
    assert widened(of(x={"$ref": "#/$defs/a"}) | loop)


@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "properties"]),
        st.sampled_from([{"type": "string"}, {"type": "integer"}, {"enum": ["x", "y"]}, {"type": "boolean"}]),
        min_size=1,
    )
)
def test_every_field_may_be_null_and_what_was_valid_still_is(properties):
    source = with_nullable_fields(json.dumps(of(**properties)))
    assert fault(source, json.dumps(dict.fromkeys(properties))) is None
    values = {"string": "s", "integer": 1, "boolean": True, None: "x"}
    assert fault(source, json.dumps({name: values[field.get("type")] for name, field in properties.items()})) is None
    assert fault(source, "{}") == "required is not satisfied"


def parsed(**body):
    whole = {"model": "m", "messages": [{"role": "user", "content": "x"}], "outrider": {"nullable_fields": True}} | body
    from starlette.datastructures import Headers

    return parse_chat(whole, Headers(), server=ServerSettings(), routing=RoutingSettings(), now_ms=0).request


def test_a_request_asks_for_it():
    given = {"type": "json_schema", "json_schema": {"name": "x", "schema": of(a={"type": "string"})}}
    request = parsed(response_format=given)
    assert json.loads(request.response_format.source) == widened(of(a={"type": "string"}))
    with pytest.raises(InvalidRequest, match="json_schema"):
        parsed(response_format={"type": "json_object"})
    with pytest.raises(InvalidRequest, match="nullable_fields"):
        parsed(response_format=given, outrider={"nullable_fields": "yes"})
