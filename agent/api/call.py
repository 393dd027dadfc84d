"""One call of the API that asks for an answer, and what writes that answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec
from starlette.datastructures import Headers

from agent.api.answer import Given
from agent.settings import RoutingSettings, ServerSettings
from agent.types import Delta, InferenceRequest


class Call(msgspec.Struct, frozen=True):
    """A validated call: its requests, in the order of their answers, and how those are to be written."""

    requests: tuple[InferenceRequest, ...]  # a streamed call has one
    stream: bool = False
    include_usage: bool = False

    @property
    def request(self) -> InferenceRequest:
        """The first request."""
        return self.requests[0]


class Parser(Protocol):
    """Makes a call of a body. Raises InvalidRequest that names the parameter, TooManyHops for a loop.

    Whether the model exists is not checked here.
    """

    def __call__(
        self,
        body: Mapping[str, Any],
        headers: Headers,
        /,
        *,
        server: ServerSettings,
        routing: RoutingSettings,
        now_ms: int,
    ) -> Call: ...


class Shape(Protocol):
    """Writes the answer to one call: whole, or, of a call of one request, in chunks as it is made."""

    def whole(self, given: Sequence[Given]) -> dict[str, Any]:
        """Return the body of the response, from what each request was given."""
        ...

    def pieces(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """Yield the chunks of a piece of the answer."""
        ...

    def rest(self, given: Given) -> Iterator[dict[str, Any]]:
        """Yield what no chunk has told yet, the verdict, and the usage if it was asked for."""
        ...
