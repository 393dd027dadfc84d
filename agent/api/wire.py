"""JSON in, JSON and errors out: what every route shares."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from agent.api.fields import Fields
from agent.errors import (
    BodyTimeout,
    Busy,
    InvalidRequest,
    OutriderError,
    PayloadTooLarge,
    StillRunning,
    UnsupportedMediaType,
)

DEEPEST = 32  # levels of nesting
BODY_TIMEOUT_S = 30.0
MOST_DRAINED = 64 << 20  # bytes of a refused body read so that the client gets to the answer

JSON = msgspec.json.Encoder()


def json_response(data: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response. Numbers that are not finite become null."""
    return Response(JSON.encode(data), status, dict(headers or {}), media_type="application/json")


def error_object(error: OutriderError) -> dict[str, Any]:
    """Return the error as the OpenAI API writes it."""
    return {"error": {"message": str(error), "type": error.type, "param": error.param, "code": error.code}}


def error_response(error: OutriderError, headers: Mapping[str, str] | None = None) -> Response:
    """Return the error with the headers that tell a client whether to send again."""
    found = dict(headers or {})
    if isinstance(error, Busy):
        found["retry-after"] = str(error.retry_after_s)
    elif not isinstance(error, StillRunning):
        # The openai client sends 408, 409 and 5xx again by itself. A prompt that killed the
        # engine, a full disk or a passed deadline is not better half a second later.
        found["x-should-retry"] = "false"
    return json_response(error_object(error), error.status, found)


async def read_json(request: Request, limit: int) -> dict[str, Any]:
    """Read, bound and parse a JSON object.

    Raises PayloadTooLarge, BodyTimeout, UnsupportedMediaType, or InvalidRequest for what is
    not UTF-8, not JSON (NaN, Infinity, lone surrogates, trailing text), too deep or not an object.
    """
    check_media_type(request)
    return parse_json(await read_body(request, limit))


def check_media_type(request: Request) -> None:
    """Raise UnsupportedMediaType unless the body is plain application/json in UTF-8."""
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().replace('"', "")
    if kind.strip().lower() != "application/json" or charset not in {"", "charset=utf-8"}:
        raise UnsupportedMediaType("the body must have the content type application/json")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("compressed bodies are not accepted: send the JSON as it is")


async def read_body(request: Request, limit: int) -> bytes:
    """Return the whole body. It is bounded while it arrives, whatever its headers say."""
    size = 0
    chunks: list[bytes] = []
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= limit:
                    chunks.append(chunk)
                else:
                    chunks.clear()
                if size > max(limit, MOST_DRAINED):
                    break
    except TimeoutError:
        raise BodyTimeout(f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None
    if size > limit:
        raise PayloadTooLarge(f"the body has more than {limit} bytes (server.max_body_bytes)")
    return b"".join(chunks)


def parse_json(raw: bytes) -> dict[str, Any]:
    """Parse a JSON object strictly. Raises InvalidRequest."""
    try:
        found = msgspec.json.decode(raw)
    except UnicodeDecodeError:
        raise InvalidRequest("the body is not UTF-8", code="invalid_json") from None
    except RecursionError:
        raise _too_deep() from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(found, dict):
        raise InvalidRequest("the body must be a JSON object", code="invalid_json")
    if raw.count(b"[") + raw.count(b"{") > DEEPEST:
        _check_depth(found)
    return found


def _check_depth(tree: object) -> None:
    level: list[Any] = [tree]
    for _ in range(DEEPEST):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"the body is nested deeper than {DEEPEST} levels", code="invalid_json")


def query(request: Request, *, texts: Collection[str] = (), integers: Collection[str] = ()) -> Fields:
    """Return the query parameters. Raises InvalidRequest for a name that is not listed or comes twice."""
    values: dict[str, Any] = {}
    for name, text in request.query_params.multi_items():
        if name in values:
            raise InvalidRequest(f"{name[:100]} came twice", param=name[:100], code="contradiction")
        whole = name in integers and re.fullmatch(r"[0-9]{1,18}", text)
        values[name] = int(text) if whole else text
    fields = Fields(values)
    for name in (*texts, *integers):
        fields.take(name)
    fields.finish()
    return fields
