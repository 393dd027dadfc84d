"""The OpenAPI document, and requests that are drawn from it: whatever they are, none breaks the daemon."""

import json
from urllib.parse import quote

from fakes.api_server import ADMIN, MODEL
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

EXAMPLES = 3  # of each operation
TOLD = {502, 504, 507, 508}  # nobody answered, too late, full, a loop: no fault of this program
TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 65), 1 << 65) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def operations(api):
    document = api.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def fitting(schema):
    """Draw values that a schema allows, and now and then any other: a client may be wrong."""
    return st.one_of(_of(schema), _of(schema), _of(schema), JSON)


def _of(schema):
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:
        return st.one_of([fitting(one) for one in schema["anyOf"]])
    kind = schema.get("type")
    if kind == "object":
        required, properties = schema.get("required", ()), schema.get("properties", {})
        parts = {name: fitting(one) for name, one in properties.items()}
        parts |= {"model": st.sampled_from([MODEL, "none"]) | JSON} if "model" in parts else {}
        always = {name: parts[name] for name in required}
        return st.fixed_dictionaries(always, optional={name: parts[name] for name in parts if name not in always})
    if kind == "array":
        return st.lists(fitting(schema.get("items", {})), min_size=schema.get("minItems", 0), max_size=3)
    return {
        "string": TEXTS,
        "boolean": st.booleans(),
        "integer": st.integers(schema.get("minimum", -10), min(schema.get("maximum", 1000), 1000)),
        "number": st.floats(schema.get("minimum", 0), schema.get("maximum", 2)),
    }.get(kind, JSON)


def test_every_route_is_in_the_document(api):
    told = {(method, path) for method, path, _ in operations(api)}
    known = {
        (method, route.path.replace(":path", ""))
        for route in api.server.config.app.routes
        for method in route.methods - {"HEAD"}
    }
    assert told == known
    assert all(operation["summary"] for _, _, operation in operations(api))


def test_no_request_of_the_document_is_a_fault(api):
    with api.client(ADMIN) as client:
        for method, path, operation in operations(api):
            tried(client, method, path, operation)


def tried(client, method, path, operation):
    content = operation.get("requestBody", {}).get("content", {})
    body = content.get("application/json", {}).get("schema")

    @seed(1)
    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )  # fmt: skip
    @given(data=st.data())
    def answered(data):
        url, params = path, {}
        for one in operation["parameters"]:
            value = data.draw(fitting(one["schema"]), one["name"])
            text = value if isinstance(value, str) else json.dumps(value)
            if one["in"] == "path":
                url = url.replace("{" + one["name"] + "}", quote(text, safe="") or "x")
            elif data.draw(st.booleans()):
                params[one["name"]] = text
        sent = {"json": data.draw(fitting(body), "body")} if body is not None else {}
        if "multipart/form-data" in content:
            sent = {"files": {"file": data.draw(st.binary(max_size=40))}, "data": {"purpose": data.draw(TEXTS)}}
        response = client.request(method, url, params=params, **sent)
        assert response.status_code < 500 or response.status_code in TOLD, response.text
        assert "internal error" not in response.text

    answered()
