"""From the bodies of ``POST /v1/embeddings``, ``/v1/rerank`` and ``/v1/tag`` to what an encoder is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, TypeGuard

import msgspec

from agent.api.fields import Fields
from agent.errors import InvalidRequest
from agent.settings import ServerSettings
from agent.types import Prompt

MOST_INPUTS = 2048  # as many as the OpenAI API takes
MOST_DIMENSIONS = 1 << 16
LONGEST_SALT = 512
MOST_TAGS = 1000


class EncodingFormat(StrEnum):
    """How a vector is written."""

    FLOAT = "float"  # a list of numbers
    BASE64 = "base64"  # of float32, little endian


class EmbeddingsCall(msgspec.Struct, frozen=True, kw_only=True):
    """A validated call for vectors."""

    model: str
    texts: tuple[Prompt, ...]
    encoding: EncodingFormat
    dimensions: int  # 0: all
    truncate: bool
    cache_salt: str | None


class RerankCall(msgspec.Struct, frozen=True, kw_only=True):
    """A validated call for an order of documents."""

    model: str
    query: str
    documents: tuple[str, ...]
    most: int  # of the results, the best first
    return_documents: bool
    truncate: bool
    cache_salt: str | None


class TagCall(msgspec.Struct, frozen=True, kw_only=True):
    """A validated call for the labelled pieces of texts."""

    model: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]  # only pieces of these; empty: of all
    least: float  # score of a piece, 0 to 1
    truncate: bool


def parse_embeddings(body: Mapping[str, Any], server: ServerSettings) -> EmbeddingsCall:
    """Check every parameter. Raises InvalidRequest that names the one at fault."""
    fields = Fields(body)
    found = EmbeddingsCall(
        model=_model(fields),
        texts=_inputs(fields),
        encoding=fields.choice("encoding_format", EncodingFormat) or EncodingFormat.FLOAT,
        dimensions=fields.integer("dimensions", 1, MOST_DIMENSIONS) or 0,
        truncate=fields.flag("truncate") or False,
        cache_salt=_cache_salt(fields),
    )
    fields.text("user", server.max_body_bytes)
    fields.finish()
    return found


def parse_rerank(body: Mapping[str, Any], server: ServerSettings) -> RerankCall:
    """Check every parameter. Raises InvalidRequest that names the one at fault."""
    fields = Fields(body)
    query = fields.text("query", server.max_body_bytes)
    if not query:
        raise fields.missing("query") if query is None else fields.wrong_value("query", "must not be empty")
    documents = _documents(fields)
    found = RerankCall(
        model=_model(fields),
        query=query,
        documents=documents,
        most=fields.integer("top_n", 1, 1 << 31) or len(documents),
        return_documents=fields.flag("return_documents") or False,
        truncate=fields.flag("truncate") or False,
        cache_salt=_cache_salt(fields),
    )
    fields.text("user", server.max_body_bytes)
    fields.finish()
    return found


def parse_tag(body: Mapping[str, Any], server: ServerSettings) -> TagCall:
    """Check every parameter. Raises InvalidRequest that names the one at fault."""
    fields = Fields(body)
    found = TagCall(
        model=_model(fields),
        texts=_plain_texts(fields),
        labels=_labels(fields),
        least=fields.number("min_score", 0, 1) or 0.0,
        truncate=fields.flag("truncate") or False,
    )
    fields.text("user", server.max_body_bytes)
    fields.finish()
    return found


def _plain_texts(fields: Fields) -> tuple[str, ...]:
    """Return the texts: one, or a list. Tokens have no characters that a piece could be counted in."""
    found = _inputs(fields)
    texts = tuple(one for one in found if isinstance(one, str))
    if len(texts) < len(found):
        raise fields.wrong_type("input", "a text or a list of texts")
    return texts


def _labels(fields: Fields) -> tuple[str, ...]:
    found = fields.array("labels", MOST_TAGS)
    if found is None:
        return ()
    for index, label in enumerate(found):
        if not isinstance(label, str) or not label:
            raise fields.wrong_type(f"labels[{index}]", "a label")
    if not found:
        raise fields.wrong_value("labels", "must not be empty: leave it out for all of them")
    return tuple(found)


def _model(fields: Fields) -> str:
    model = fields.text("model", 256)
    if not model:
        raise fields.missing("model")
    return model


def _cache_salt(fields: Fields) -> str | None:
    salt = fields.text("cache_salt", LONGEST_SALT)
    if salt == "":
        raise fields.wrong_value("cache_salt", "must have at least one character")
    return salt


def _inputs(fields: Fields) -> tuple[Prompt, ...]:
    """Return the texts: one, a list, the tokens of one, or a list of those."""
    value = fields.take("input")
    if value is None:
        raise fields.missing("input")
    if isinstance(value, list) and value and isinstance(value[0], int):
        return (_tokens(value, "input"),)
    if not isinstance(value, list):
        return (_text(value, "input"),)
    if not value:
        raise fields.wrong_value("input", "must not be empty")
    if len(value) > MOST_INPUTS:
        raise fields.wrong_value("input", f"must have at most {MOST_INPUTS} items: send several requests")
    return tuple(
        _tokens(item, f"input[{index}]") if isinstance(item, list) else _text(item, f"input[{index}]")
        for index, item in enumerate(value)
    )


def _documents(fields: Fields) -> tuple[str, ...]:
    value = fields.take("documents")
    if value is None:
        raise fields.missing("documents")
    if not isinstance(value, list):
        raise fields.wrong_type("documents", "a list")
    if not 0 < len(value) <= MOST_INPUTS:
        raise fields.wrong_value("documents", f"must have 1 to {MOST_INPUTS} items: send several requests")
    return tuple(
        _text(item["text"] if isinstance(item, dict) and item.keys() == {"text"} else item, f"documents[{index}]")
        for index, item in enumerate(value)
    )


def _text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{path} must be a string", param=path, code="invalid_type")
    if not value:
        raise InvalidRequest(f"{path} must not be empty: leave it out", param=path, code="invalid_value")
    return value


def _tokens(value: Sequence[object], path: str) -> tuple[int, ...]:
    if not value:
        raise InvalidRequest(f"{path} must not be empty: leave it out", param=path, code="invalid_value")
    found = tuple(token for token in value if _is_token(token))
    if len(found) < len(value):
        raise InvalidRequest(f"{path} must hold tokens only: whole numbers from 0 on", param=path, code="invalid_type")
    return found


def _is_token(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31
