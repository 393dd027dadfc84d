"""``/v1/files``: inputs of batches, and their outputs."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from agent.api.auth import of_caller
from agent.api.deps import ApiDeps, deps_of, key_of
from agent.api.envelope import idempotency_key
from agent.api.fields import Fields
from agent.api.multipart import MultipartReader, Part, boundary_of
from agent.api.wire import json_response, query
from agent.errors import BodyTimeout, InvalidRequest, PayloadTooLarge
from agent.storage.file_store import CHUNK_BYTES, INPUT, StoredFile

MOST_LISTED = 10_000
PIECE_TIMEOUT_S = 30.0  # between two pieces of an upload
UPLOAD_TIMEOUT_S = 3600.0
SHORTEST_KEEP_S, LONGEST_KEEP_S = 3600, 30 * 86_400  # of expires_after, as the OpenAI API has it
LONGEST_FIELD = 1024
LONGEST_NAME = 255


def file_object(file: StoredFile) -> dict[str, Any]:
    """Return a file as the OpenAI API writes it."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at_ms // 1000,
        "expires_at": None if file.expires_at_ms is None else file.expires_at_ms // 1000,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


async def upload(request: Request) -> Response:
    """``POST /v1/files``: multipart/form-data with ``purpose`` (``batch``) and ``file``."""
    query(request)
    deps = deps_of(request)
    key = of_caller(key_of(request), idempotency_key(request.headers))
    reader = MultipartReader(boundary_of(request.headers.get("content-type", "")))
    file_id = await deps.storage.files.begin(now_ms=deps.now_ms())
    try:
        return json_response(file_object(await _received(request, deps, reader, file_id, key)))
    except BaseException:
        await asyncio.shield(deps.storage.files.drop(file_id))
        raise


async def _received(
    request: Request, deps: ApiDeps, reader: MultipartReader, file_id: str, key: str | None
) -> StoredFile:
    files, most = deps.storage.files, deps.storage.files.settings.max_bytes
    texts: dict[str, str] = {}
    name = filename = None
    waiting, size, number = bytearray(), 0, 0
    digest = hashlib.sha256()
    async for data in _pieces(request):
        for found in reader.feed(data):
            if isinstance(found, Part):
                name = found.name
                if name in texts or (name == "file" and filename is not None):
                    raise InvalidRequest(f"{name[:100]} came twice", param=name[:100], code="contradiction")
                if name == "file":
                    filename = (found.filename or "file")[-LONGEST_NAME:]
                else:
                    texts[name] = ""
            elif name == "file":
                size += len(found)
                if size > most:
                    raise PayloadTooLarge(f"the file has more than {most} bytes (files.max_bytes)")
                digest.update(found)
                waiting += found
                while len(waiting) >= CHUNK_BYTES:
                    await files.append(file_id, number, bytes(waiting[:CHUNK_BYTES]))
                    del waiting[:CHUNK_BYTES]
                    number += 1
            elif name is not None:
                texts[name] += found.decode("utf-8", "replace")
                if len(texts[name]) > LONGEST_FIELD:
                    raise InvalidRequest(f"{name[:100]} is too long", param=name[:100], code="invalid_value")
    if not reader.ended:
        raise InvalidRequest("the body ends before its last delimiter", code="invalid_multipart")
    keep_s = _check_fields(texts)
    if filename is None:
        raise InvalidRequest("file is missing", param="file", code="missing_required_parameter")
    if waiting:
        await files.append(file_id, number, bytes(waiting))
    return await files.ready(
        file_id, filename=filename, sha256=digest.hexdigest(), key=key, keep_s=keep_s, now_ms=deps.now_ms()
    )


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    stream = request.stream()
    try:
        async with asyncio.timeout(UPLOAD_TIMEOUT_S):
            while True:
                async with asyncio.timeout(PIECE_TIMEOUT_S):
                    piece = await anext(stream, None)
                if piece is None:
                    return
                yield piece
    except TimeoutError:
        raise BodyTimeout(f"nothing of the body came for {PIECE_TIMEOUT_S:g} s, or not all of it in an hour") from None


def _check_fields(texts: dict[str, str]) -> int | None:
    """Return how long the file is to stay, in seconds; None: as configured. Raises InvalidRequest."""
    anchor, seconds = "expires_after[anchor]", "expires_after[seconds]"
    numbers = {name: int(text) if name == seconds and text.isdecimal() else text for name, text in texts.items()}
    fields = Fields(numbers)
    purpose = fields.text("purpose", 64)
    if purpose is None:
        raise fields.missing("purpose")
    if purpose != INPUT:
        raise fields.wrong_value("purpose", f"must be {INPUT}: no other file is used here")
    if fields.text(anchor, 64) not in {None, "created_at"}:
        raise fields.wrong_value(anchor, "must be created_at")
    keep_s = fields.integer(seconds, SHORTEST_KEEP_S, LONGEST_KEEP_S)
    fields.finish()
    return keep_s


async def list_files(request: Request) -> Response:
    """``GET /v1/files``: newest first unless ``order=asc``."""
    asked = query(request, texts=("purpose", "after", "order"), integers=("limit",))
    limit = asked.integer("limit", 1, MOST_LISTED) or 1000
    order = asked.text("order", 8) or "desc"
    if order not in {"asc", "desc"}:
        raise asked.wrong_value("order", "must be asc or desc")
    found = await deps_of(request).storage.files.list(
        purpose=asked.text("purpose", 64),
        after=asked.text("after", 128),
        limit=limit + 1,
        newest_first=order == "desc",
    )
    return json_response(list_object([file_object(file) for file in found[:limit]], more=len(found) > limit))


def list_object(data: list[dict[str, Any]], *, more: bool) -> dict[str, Any]:
    """Return a page of objects as the OpenAI API writes it."""
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": more}


async def show(request: Request) -> Response:
    """``GET /v1/files/{id}``."""
    return json_response(file_object(await deps_of(request).storage.files.get(request.path_params["id"])))


async def content(request: Request) -> Response:
    """``GET /v1/files/{id}/content``: the bytes, piece by piece."""
    deps = deps_of(request)
    file = await deps.storage.files.get(request.path_params["id"])

    async def pieces() -> AsyncIterator[bytes]:
        async for piece in deps.storage.files.content(file):
            yield piece
        if file.batch_id is not None and deps.settings.retention.bodies == "none":
            await deps.storage.files.expire_now(file.id, deps.now_ms())

    headers = {"content-length": str(file.bytes)}
    return StreamingResponse(pieces(), media_type="application/octet-stream", headers=headers)


async def delete(request: Request) -> Response:
    """``DELETE /v1/files/{id}``: its bytes are gone from this device."""
    file_id = request.path_params["id"]
    await deps_of(request).storage.files.delete(file_id)
    return json_response({"id": file_id, "object": "file", "deleted": True})


ROUTES = [
    Route("/v1/files", upload, methods=["POST"]),
    Route("/v1/files", list_files, methods=["GET"]),
    Route("/v1/files/{id}", show, methods=["GET"]),
    Route("/v1/files/{id}", delete, methods=["DELETE"]),
    Route("/v1/files/{id}/content", content, methods=["GET"]),
]
