"""The HTTP application: one guard before every route, one shape for every error."""

from __future__ import annotations

import asyncio
from itertools import chain

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent.api import (
    batch_routes,
    classify_routes,
    digest_routes,
    encoder_routes,
    erase_routes,
    example_routes,
    feedback_routes,
    file_routes,
    model_routes,
    openai_routes,
    openapi,
    ops_routes,
    prefix_routes,
    promotion_routes,
    queue_routes,
    report_routes,
    request_routes,
    response_routes,
    signal_routes,
    task_routes,
    trial_routes,
)
from agent.api.auth import caller_of, check_caller
from agent.api.batch_runner import BatchRunner
from agent.api.deps import KEY, ROLE, ApiDeps
from agent.api.server import MOST_HEADER_BYTES, ApiServer, check_tls, uvicorn_config
from agent.api.sse import ClientGone
from agent.api.wire import error_response
from agent.errors import HeadersTooLarge, InvalidRequest, MethodNotAllowed, NotFound, OutriderError, ShuttingDown
from agent.telemetry import LOG, METRICS, log_fault

__all__ = ["ApiDeps", "ApiServer", "check_tls", "create_app", "uvicorn_config"]

OPEN_PATH = "/healthz"
_FIXED_HEADERS = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]


def create_app(deps: ApiDeps) -> Starlette:
    """Build the application. It starts and stops nothing of what it is given."""
    app = Starlette(
        routes=[
            *openai_routes.ROUTES,
            *model_routes.ROUTES,
            *promotion_routes.ROUTES,
            *classify_routes.ROUTES,
            *encoder_routes.ROUTES,
            *response_routes.ROUTES,
            *file_routes.ROUTES,
            *batch_routes.ROUTES,
            *digest_routes.ROUTES,
            *request_routes.ROUTES,
            *prefix_routes.ROUTES,
            *signal_routes.ROUTES,
            *task_routes.ROUTES,
            *trial_routes.ROUTES,
            *example_routes.ROUTES,
            *feedback_routes.ROUTES,
            *queue_routes.ROUTES,
            *erase_routes.ROUTES,
            *report_routes.ROUTES,
            *ops_routes.ROUTES,
            *openapi.ROUTES,
        ],
        middleware=[Middleware(Guard, deps=deps)],
        exception_handlers={HTTPException: _http_exception, OutriderError: _outrider_error},
    )
    app.router.redirect_slashes = False
    app.state.deps = deps
    app.state.batches = BatchRunner(deps)
    return app


class Guard:
    """Checks Host, Origin and token of every request; turns whatever escapes a route into an answer."""

    def __init__(self, app: ASGIApp, deps: ApiDeps) -> None:
        self._app = app
        self._deps = deps

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        if scope["type"] != "http":
            return
        started = False

        async def sender(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                METRICS.count("http_responses", status=str(message["status"]))
                message = {**message, "headers": [*message["headers"], *_FIXED_HEADERS]}
            await send(message)

        try:
            self._admit(scope)
            await self._app(scope, receive, sender)
        except (ClientGone, ClientDisconnect):
            LOG.debug("the caller of %s left", scope["method"])
        except OutriderError as error:
            await error_response(error)(scope, receive, sender)
        except asyncio.CancelledError:
            # Only the server's stop cancels a request from outside.
            if not started:
                stopping = ShuttingDown("the daemon is stopping; what was accepted stays in the queue")
                await error_response(stopping)(scope, receive, sender)
        except Exception:
            log_fault("in a request")
            if not started:
                await error_response(OutriderError("internal error; see the daemon's log"))(scope, receive, sender)

    def _admit(self, scope: Scope) -> None:
        # h11 bounds headers that are still arriving; these may have come whole, in one piece.
        size = len(scope["raw_path"]) + len(scope["query_string"]) + sum(map(len, chain(*scope["headers"])))
        if size > MOST_HEADER_BYTES:
            raise HeadersTooLarge(f"address and headers have more than {MOST_HEADER_BYTES} bytes")
        headers = Headers(scope=scope)
        check_caller(headers, self._deps.settings.server)
        if scope["path"] != OPEN_PATH:
            caller = caller_of(headers, self._deps.tokens)
            scope[ROLE], scope[KEY] = caller.role, caller.key


async def _http_exception(request: Request, error: Exception) -> Response:
    """What the router raises by itself: no such path, not this method."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:100]
    if error.status_code == 404:
        return error_response(NotFound(f"there is nothing at {path}"))
    if error.status_code == 405:
        return error_response(MethodNotAllowed(f"{path} does not take {request.method}"), error.headers)
    found = InvalidRequest(str(error.detail))
    found.status = error.status_code
    return error_response(found, error.headers)


async def _outrider_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, OutriderError)
    return error_response(error)
