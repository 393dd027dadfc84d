"""``POST /v1/embeddings``, ``/v1/rerank`` and ``/v1/tag``: what encoders say of texts, at once or not at all.

They have no confidence, are never queued for a target, and nothing of them is stored.
"""

from __future__ import annotations

import array
import asyncio
import base64
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.api.deps import ApiDeps, deps_of
from agent.api.encoder_request import (
    EmbeddingsCall,
    EncodingFormat,
    TagCall,
    parse_embeddings,
    parse_rerank,
    parse_tag,
)
from agent.api.model_choice import need_model
from agent.api.personal_data_tags import PERSONAL_DATA, personal_data
from agent.api.sse import while_connected
from agent.api.wire import json_response, read_json
from agent.encoder import EncoderTask
from agent.engine import frames
from agent.engine.cache_scope import encoder_scope
from agent.errors import InvalidRequest
from agent.refusal import refusal

_BYTES_PER_NUMBER = 4
_RERANKING = {"input": "documents"}  # what the engine calls the parameter, and what the caller does


async def embeddings(request: Request) -> Response:
    """``POST /v1/embeddings``."""
    deps = deps_of(request)
    body = await read_json(request, deps.settings.server.max_body_bytes)
    return json_response(await while_connected(request.receive, embeddings_of(deps, body)))


async def embeddings_of(deps: ApiDeps, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer to a body of ``/v1/embeddings``. Raises what is wrong with it, or with the engine."""
    call = parse_embeddings(body, deps.settings.server)
    model = need_model(deps, call.model, (EncoderTask.EMBED,))
    ask = frames.Encode(
        id=0,
        texts=call.texts,
        dimensions=call.dimensions,
        truncate=call.truncate,
        scope=encoder_scope(call.cache_salt, deps.settings.engine.share_prefixes),
    )
    encoded = await _encoded(deps, model, ask)
    usage = {"prompt_tokens": encoded.prompt_tokens, "total_tokens": encoded.prompt_tokens}
    return {"object": "list", "data": _vectors(call, encoded), "model": model, "usage": usage}


async def rerank(request: Request) -> Response:
    """``POST /v1/rerank``: the documents with how well each answers the query, 0 to 1, the best first."""
    deps = deps_of(request)
    call = parse_rerank(await read_json(request, deps.settings.server.max_body_bytes), deps.settings.server)
    model = need_model(deps, call.model, (EncoderTask.RERANK,))
    ask = frames.Encode(
        id=0,
        texts=call.documents,
        query=call.query,
        truncate=call.truncate,
        scope=encoder_scope(call.cache_salt, deps.settings.engine.share_prefixes),
    )
    encoded = await while_connected(request.receive, _encoded(deps, model, ask))
    scores = array.array("f", encoded.rows)
    best = sorted(range(len(scores)), key=lambda index: -scores[index])[: call.most]
    results = [_result(index, scores, call.documents if call.return_documents else ()) for index in best]
    usage = {"prompt_tokens": encoded.prompt_tokens, "total_tokens": encoded.prompt_tokens}
    return json_response({"object": "list", "results": results, "model": model, "usage": usage})


async def tag(request: Request) -> Response:
    """``POST /v1/tag``: the pieces of each text to which the model gives a label, in their order."""
    deps = deps_of(request)
    call = parse_tag(await read_json(request, deps.settings.server.max_body_bytes), deps.settings.server)
    if call.model == PERSONAL_DATA:
        return json_response(await asyncio.to_thread(personal_data, call, deps.redaction().terms))
    model = need_model(deps, call.model, (EncoderTask.TAG,))
    encoded = await while_connected(
        request.receive, _encoded(deps, model, frames.Encode(id=0, texts=call.texts, truncate=call.truncate))
    )
    traits = deps.engine.encoder(model)
    known = {label.removeprefix("B-").removeprefix("I-") for label in traits.labels} - {"O"} if traits else set()
    if unknown := [label for label in call.labels if label not in known]:
        reason = f"labels: model {model} does not know {unknown[0][:100]!r}; its labels are {', '.join(sorted(known))}"
        raise InvalidRequest(reason, param="labels", code="invalid_value")
    data = [
        {"object": "tags", "index": index, "spans": [_piece(text, span) for span in spans if _is_wanted(span, call)]}
        for index, (text, spans) in enumerate(zip(call.texts, encoded.spans, strict=True))
    ]
    usage = {"prompt_tokens": encoded.prompt_tokens, "total_tokens": encoded.prompt_tokens}
    return json_response({"object": "list", "data": data, "model": model, "usage": usage})


def _is_wanted(span: frames.Span, call: TagCall) -> bool:
    return span.score >= call.least and (not call.labels or span.label in call.labels)


def _piece(text: str, span: frames.Span) -> dict[str, Any]:
    piece = text[span.start : span.end]
    return {"label": span.label, "text": piece, "start": span.start, "end": span.end, "score": span.score}


async def _encoded(deps: ApiDeps, model: str, ask: frames.Encode) -> frames.Encoded:
    """Return what the engine says. Raises the error that its failure stands for."""
    left_ms = deps.settings.server.request_timeout_s * 1000
    encoded = await deps.engine.encode(model, ask, left_ms)
    if encoded.failure is None:
        return encoded
    error = refusal(encoded.failure)
    if ask.query is not None and error.param:
        name, bracket, rest = error.param.partition("[")
        error.param = _RERANKING.get(name, name) + bracket + rest
    raise error


def _vectors(call: EmbeddingsCall, encoded: frames.Encoded) -> list[dict[str, Any]]:
    """Return one object a text, in their order."""
    size = encoded.width * _BYTES_PER_NUMBER
    rows = memoryview(encoded.rows)
    write = _base64 if call.encoding is EncodingFormat.BASE64 else _numbers
    return [
        {"object": "embedding", "index": index, "embedding": write(rows[index * size : (index + 1) * size])}
        for index in range(len(call.texts))
    ]


def _base64(row: memoryview) -> str:
    return base64.b64encode(row).decode("ascii")


def _numbers(row: memoryview) -> list[float]:
    return array.array("f", row.tobytes()).tolist()


def _result(index: int, scores: Sequence[float], documents: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"index": index, "relevance_score": scores[index]}
    if documents:
        found["document"] = {"text": documents[index]}
    return found


ROUTES = [
    Route("/v1/embeddings", embeddings, methods=["POST"]),
    Route("/v1/rerank", rerank, methods=["POST"]),
    Route("/v1/tag", tag, methods=["POST"]),
]
