"""What every request for an answer carries, whatever it asks for: model, policy, deadline, key, hops."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.datastructures import Headers

from agent.api.fields import Fields
from agent.api.nullable_schema import with_nullable_fields
from agent.errors import InvalidRequest, TooManyHops
from agent.identifiers import uuid7
from agent.settings import RoutingSettings, ServerSettings
from agent.structure import FormatKind, OutputFormat
from agent.types import EgressPolicy, InferenceRequest, OnLowConfidence, RouteMode

MOST_HOPS = 3  # this many Outriders behind a request are a loop
LONGEST_KEY = 255  # characters of an Idempotency-Key
LONGEST_DEADLINE_MS = 86_400_000
LONGEST_WANTED_S = 30 * 86_400
MOST_METADATA = 16

EXTENSION_HEADERS = {
    "on_low_confidence": "x-outrider-on-low-confidence",
    "route_mode": "x-outrider-route-mode",
    "egress": "x-outrider-egress",
    "deadline_ms": "x-outrider-deadline-ms",
    "wanted_s": "x-outrider-wanted-s",
}
_NUMBERS = frozenset({"deadline_ms", "wanted_s"})
HOPS_HEADER = "x-outrider-hops"

_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")


class Envelope:
    """Takes the shared parameters out of the body and the headers."""

    def __init__(self, fields: Fields, body: Mapping[str, Any], headers: Headers) -> None:
        """Raises InvalidRequest that names the parameter, TooManyHops for a loop."""
        self._model = fields.text("model", 256)
        if not self._model:
            raise fields.missing("model")
        self._metadata = take_metadata(fields)
        self._user = fields.text("user", 512)
        self._safety_identifier = fields.text("safety_identifier", 512)
        self._cache_salt = fields.text("cache_salt", 512)
        if self._cache_salt == "":
            raise fields.wrong_value("cache_salt", "must have at least one character")
        extension = _extension(fields, headers)
        self._span_ms = extension.integer("deadline_ms", 1, LONGEST_DEADLINE_MS)
        self._wanted_s = extension.integer("wanted_s", 1, LONGEST_WANTED_S)
        self.route_mode = extension.choice("route_mode", RouteMode)
        self.egress = extension.choice("egress", EgressPolicy)
        self._on_low_confidence = extension.choice("on_low_confidence", OnLowConfidence)
        self._nullable_fields = extension.flag("nullable_fields") or False
        extension.finish()
        self._key = idempotency_key(headers)
        self._hops = _hops(headers)
        self._sha256 = _digest(body, headers)

    @property
    def names_deadline(self) -> bool:
        """Whether the caller said by when it wants the answer."""
        return self._span_ms is not None

    def request(
        self, asked: InferenceRequest, *, server: ServerSettings, routing: RoutingSettings, now_ms: int
    ) -> InferenceRequest:
        """Return what is asked for, with all that it comes in. ``asked`` has no id, model and time yet.

        Raises InvalidRequest for nullable_fields without fields.
        """
        if self._nullable_fields:
            asked = msgspec.structs.replace(asked, response_format=_nullable(asked.response_format))
        return msgspec.structs.replace(
            asked,
            id=uuid7(now_ms),
            model=self._model,
            route_mode=self.route_mode or routing.mode,
            names_route=self.route_mode is not None,
            on_low_confidence=self._on_low_confidence or routing.on_low_confidence,
            egress=self.egress,
            idempotency_key=self._key,
            body_sha256=self._sha256,
            metadata=self._metadata,
            user=self._user,
            safety_identifier=self._safety_identifier,
            cache_salt=self._cache_salt,
            received_at_ms=now_ms,
            deadline_at_ms=now_ms + (self._span_ms or int(server.request_timeout_s * 1000)),
            wanted_s=self._wanted_s or 0,
            hops=self._hops,
        )


def _nullable(output: OutputFormat | None) -> OutputFormat:
    if output is None or output.kind is not FormatKind.JSON_SCHEMA:
        raise InvalidRequest(
            "outrider.nullable_fields needs a response_format of type json_schema",
            param="outrider.nullable_fields",
            code="invalid_value",
        )
    return msgspec.structs.replace(output, source=with_nullable_fields(output.source))


def take_metadata(fields: Fields) -> dict[str, str]:
    """Take ``metadata``."""
    value = fields.take("metadata")
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise fields.wrong_type("metadata", "an object of strings")
    if len(value) > MOST_METADATA or any(len(key) > 64 or len(text) > 512 for key, text in value.items()):
        raise fields.wrong_value("metadata", "must have at most 16 pairs, keys of 64 and values of 512 characters")
    return value


def _extension(fields: Fields, headers: Headers) -> Fields:
    """Merge the ``outrider`` object and the x-outrider-* headers; a contradiction is refused."""
    known = {*EXTENSION_HEADERS.values(), HOPS_HEADER}
    for header in headers:
        # A misspelt x-outrider-egress must not let text out.
        if header.startswith("x-outrider-") and header not in known:
            raise InvalidRequest(
                f"unknown header {header[:100]}: known are {', '.join(sorted(known))}",
                param=header[:100],
                code="unknown_parameter",
            )
    given = fields.take("outrider")
    if given is not None and not isinstance(given, dict):
        raise fields.wrong_type("outrider", "an object")
    merged: dict[str, Any] = dict(given or {})
    for name, header in EXTENSION_HEADERS.items():
        text = _single(headers, header)
        if text is None:
            continue
        value: object = int(text) if name in _NUMBERS and re.fullmatch(r"[0-9]{1,12}", text) else text
        if merged.get(name) is not None and merged[name] != value:
            raise InvalidRequest(
                f"outrider.{name} and the header {header} differ: keep one",
                param=f"outrider.{name}",
                code="contradiction",
            )
        merged[name] = value
    return Fields(merged, "outrider")


def _single(headers: Headers, name: str) -> str | None:
    values = headers.getlist(name)
    if len(set(values)) > 1:
        raise InvalidRequest(f"the header {name} came twice with different values", param=name, code="contradiction")
    return values[0] if values else None


def idempotency_key(headers: Headers) -> str | None:
    """Return the Idempotency-Key of a call. Raises InvalidRequest."""
    key = _single(headers, "idempotency-key")
    if key is not None and (len(key) > LONGEST_KEY or not _KEY.fullmatch(key)):
        raise InvalidRequest(
            f"Idempotency-Key must be 1 to {LONGEST_KEY} printable ASCII characters",
            param="idempotency-key",
            code="invalid_value",
        )
    return key


def _hops(headers: Headers) -> int:
    text = _single(headers, HOPS_HEADER)
    if text is None:
        return 0
    if not re.fullmatch(r"[0-9]{1,3}", text):
        raise InvalidRequest(f"{HOPS_HEADER} must be a number", param=HOPS_HEADER, code="invalid_value")
    if int(text) >= MOST_HOPS:
        raise TooManyHops(
            f"the request came through {int(text)} Outriders, at most {MOST_HOPS - 1} are allowed: "
            "two of them may be each other's target"
        )
    return int(text)


def _digest(body: Mapping[str, Any], headers: Headers) -> str:
    """Hash what makes two requests the same: the body whatever its spelling, and the headers that steer it."""
    steering = {name: _single(headers, header) for name, header in EXTENSION_HEADERS.items()}
    return hashlib.sha256(msgspec.json.encode([body, steering], order="deterministic")).hexdigest()
