"""The API as an OpenAPI 3.1 document, served at ``/openapi.json``.

Paths, methods and summaries are read from the routes themselves, so none can be missing; what the
bodies hold is written here. The parsers are stricter than these schemas: they say what a client has
to know to begin, not every rule between two parameters.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from agent.api.deps import deps_of
from agent.api.wire import json_response, query
from agent.types import EgressPolicy, OnLowConfidence, RouteMode

Schema = dict[str, Any]
OPEN = "/healthz"  # needs no token

_STRING: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_NUMBER: Schema = {"type": "number"}
_COUNT: Schema = {"type": "integer", "minimum": 1}
_STRINGS: Schema = {"type": "array", "items": _STRING}
_METADATA: Schema = {
    "type": "object",
    "additionalProperties": {"type": "string", "maxLength": 512},
    "maxProperties": 16,
}
_OUTRIDER: Schema = {
    "type": "object",
    "description": "Policies of this request.",
    "properties": {
        "route_mode": {"enum": [*RouteMode]},
        "on_low_confidence": {"enum": [*OnLowConfidence]},
        "egress": {"enum": [*EgressPolicy]},
        "deadline_ms": {"type": "integer", "minimum": 1, "maximum": 86_400_000},
    },
    "additionalProperties": False,
}


def _object(required: Iterable[str], **properties: Schema) -> Schema:
    return {"type": "object", "required": [*required], "properties": properties}


_ENVELOPE: dict[str, Schema] = {
    "model": {"type": "string", "minLength": 1},
    "metadata": _METADATA,
    "user": _STRING,
    "safety_identifier": _STRING,
    "cache_salt": {"type": "string", "minLength": 1},
    "outrider": _OUTRIDER,
}
_DRAWING: dict[str, Schema] = {
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "seed": {"type": "integer", "minimum": -(1 << 31), "maximum": (1 << 32) - 1},
    "stop": {"anyOf": [_STRING, {"type": "array", "items": _STRING, "maxItems": 4}]},
}
_MESSAGE = _object(
    ["role", "content"], role={"enum": ["system", "developer", "user", "assistant", "tool"]}, content=_STRING
)
_CHAT = _object(
    ["model", "messages"],
    messages={"type": "array", "items": _MESSAGE, "minItems": 1},
    max_tokens=_COUNT,
    n={"type": "integer", "minimum": 1, "maximum": 16},
    logprobs=_FLAG,
    stream=_FLAG,
    tools={"type": "array", "items": {"type": "object"}},
    response_format={"type": "object"},
    **_DRAWING,
    **_ENVELOPE,
)
_COMPLETION = _object(
    ["model", "prompt"],
    prompt={"anyOf": [_STRING, _STRINGS, {"type": "array", "items": {"type": "integer", "minimum": 0}}]},
    max_tokens={"type": "integer", "minimum": 0},
    echo=_FLAG,
    stream=_FLAG,
    **_DRAWING,
    **_ENVELOPE,
)
_RESPONSE = _object(
    ["model", "input"],
    input={"anyOf": [_STRING, {"type": "array", "items": {"type": "object"}, "minItems": 1}]},
    instructions=_STRING,
    previous_response_id=_STRING,
    max_output_tokens=_COUNT,
    background=_FLAG,
    store=_FLAG,
    stream=_FLAG,
    tools={"type": "array", "items": {"type": "object"}},
    text={"type": "object"},
    reasoning={"type": "object", "properties": {"effort": _STRING}},
    **_DRAWING,
    **_ENVELOPE,
)
_CLASSIFY = _object(["input"], input=_STRING, labels=_STRINGS, task=_STRING, **_ENVELOPE)
_EMBEDDINGS = _object(
    ["model", "input"],
    model=_STRING,
    input={"anyOf": [_STRING, _STRINGS]},
    dimensions=_COUNT,
    encoding_format={"enum": ["float", "base64"]},
)
_RERANK = _object(["model", "query", "documents"], model=_STRING, query=_STRING, documents=_STRINGS, top_n=_COUNT)
_TAG = _object(["model", "input"], model=_STRING, input={"anyOf": [_STRING, _STRINGS]})
_BATCH = _object(
    ["input_file_id", "endpoint", "completion_window"],
    input_file_id=_STRING,
    endpoint={"enum": ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"]},
    completion_window={"type": "string", "pattern": "^[0-9]{1,3}h$"},
    metadata=_METADATA,
)
_FILE = _object(["purpose", "file"], purpose={"enum": ["batch"]}, file={"type": "string", "format": "binary"})
_RELEASE = _object([], ids=_STRINGS, all=_FLAG, target=_STRING)
_PURGE = _object([], states=_STRINGS, unfetched=_FLAG)
_ERASE = _object(["subject"], subject={"type": "string", "minLength": 1, "maxLength": 512}, dry_run=_FLAG)
_IDS = _object(["ids"], ids=_STRINGS)
_ANYTHING: Schema = {"type": "object"}

BODIES: Mapping[tuple[str, str], Schema] = {
    ("POST", "/v1/chat/completions"): _CHAT,
    ("POST", "/v1/completions"): _COMPLETION,
    ("POST", "/v1/responses"): _RESPONSE,
    ("POST", "/v1/classify"): _CLASSIFY,
    ("POST", "/v1/embeddings"): _EMBEDDINGS,
    ("POST", "/v1/rerank"): _RERANK,
    ("POST", "/v1/tag"): _TAG,
    ("POST", "/v1/batches"): _BATCH,
    ("POST", "/v1/queue/release"): _RELEASE,
    ("POST", "/v1/queue/purge"): _PURGE,
    ("POST", "/v1/erase"): _ERASE,
    ("POST", "/v1/digest/seen"): _IDS,
}
FORMS: Mapping[tuple[str, str], Schema] = {("POST", "/v1/files"): _FILE}
_WITHOUT_BODY = re.compile(r"/(cancel|retry|drain|reload|rollback)$")
_PAGE = {"limit": _COUNT, "after": _STRING}
QUERIES: Mapping[str, Mapping[str, Schema]] = {
    "/v1/requests": {"state": _STRING, "before": _STRING, "limit": _COUNT},
    "/v1/queue": {"state": _STRING, **_PAGE},
    "/v1/queue/{id}": {"as_sent": {"enum": [0, 1]}, "target": _STRING},
    "/v1/egress": {"since_ms": {"type": "integer", "minimum": 0}, "limit": _COUNT},
    "/v1/files": {"purpose": _STRING, "order": {"enum": ["asc", "desc"]}, **_PAGE},
    "/v1/batches": _PAGE,
    "/v1/responses/{id}": {"stream": {"enum": ["true", "false"]}, "starting_after": {"type": "integer", "minimum": 0}},
    "/v1/responses/{id}/input_items": {"order": {"enum": ["asc", "desc"]}, **_PAGE},
    "/v1/digest": {"since_ms": {"type": "integer", "minimum": 0}, **_PAGE},
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": _object(
            ["message", "type", "code"],
            message=_STRING,
            type=_STRING,
            param={"type": ["string", "null"]},
            code=_STRING,
        )
    },
}


def document(routes: Iterable[BaseRoute], version: str) -> dict[str, Any]:
    """Return the OpenAPI document of some routes."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if isinstance(route, Route):
            for method in sorted(route.methods or ()):
                if method != "HEAD":
                    path = re.sub(r"\{(\w+)(?::\w+)?\}", r"{\1}", route.path)
                    paths.setdefault(path, {})[method.lower()] = _operation(route, method, path)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Outrider",
            "version": version,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": {"Error": _ERROR},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route, method: str, path: str) -> dict[str, Any]:
    summary = (inspect.getdoc(route.endpoint) or "").partition("\n")[0]
    names = re.findall(r"\{(\w+)\}", path)
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} for name in names
    ]
    if method == "GET":
        parameters += [
            {"name": name, "in": "query", "schema": schema} for name, schema in QUERIES.get(path, {}).items()
        ]
    found: dict[str, Any] = {
        "operationId": f"{method.lower()}{re.sub(r'[^A-Za-z0-9]+', '_', path)}",
        "summary": re.sub(r"^``[^`]*``:?\s*", "", summary).rstrip(".") or path,
        "parameters": parameters,
        "security": [] if path == OPEN else [{"bearer": []}],
        "responses": {
            "200": {"description": "As asked."},
            "default": {
                "description": "What, why, and what to do.",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    if form := FORMS.get((method, path)):
        found["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    elif method in {"POST", "PUT"} and not _WITHOUT_BODY.search(path):
        body = BODIES.get((method, path), _ANYTHING)
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return found


async def show(request: Request) -> Response:
    """``GET /openapi.json``: this document."""
    query(request)
    return json_response(document(request.app.routes, deps_of(request).version))


ROUTES = [Route("/openapi.json", show, methods=["GET"])]
