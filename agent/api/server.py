"""How uvicorn runs the application: h11, no fingerprint, bounds for slow and broken clients."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import ssl
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from agent.api.wire import JSON, error_object
from agent.errors import ConfigError, InvalidRequest
from agent.settings import ServerSettings

MOST_HEADER_BYTES = 32 * 1024
HEADER_TIMEOUT_S = 15.0  # from the connection, or the end of an answer, to the end of the next headers
KEEP_ALIVE_S = 30
BACKLOG = 256
SETTLE_S = 5.0  # for requests cut short by a stop to reach the disk


def uvicorn_config(app: Starlette, server: ServerSettings) -> uvicorn.Config:
    """Return the configuration of the HTTP server. The socket comes from the caller."""
    return uvicorn.Config(
        app,
        host=server.host,
        port=server.port,
        http=PatientProtocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(server.grace_s),
        h11_max_incomplete_event_size=MOST_HEADER_BYTES,
        ssl_certfile=server.tls_cert or None,
        ssl_keyfile=server.tls_key or None,
    )


def check_tls(server: ServerSettings) -> None:
    """Raise ConfigError, with the path, unless certificate and key can be served."""
    if not server.tls_cert:
        return
    for name, path in (("server.tls_cert", server.tls_cert), ("server.tls_key", server.tls_key)):
        try:
            Path(path).read_bytes()
        except OSError as error:
            raise ConfigError(f"{name} {path} cannot be read: {error.strerror}") from error
    try:
        # The empty password keeps OpenSSL from asking for one on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(server.tls_cert, server.tls_key, password="")
    except ssl.SSLError as error:
        raise ConfigError(
            f"server.tls_cert {server.tls_cert} and server.tls_key {server.tls_key} cannot be used together: "
            f"{error.reason or 'no PEM'}; the key must be that of the certificate, in PEM without a password"
        ) from error


class _DatedState(ServerState):
    """Tells the date when an answer begins, instead of once a second."""

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of every answer."""
        return [(b"date", formatdate(usegmt=True).encode())]

    @default_headers.setter
    def default_headers(self, _: list[tuple[bytes, bytes]]) -> None:  # uvicorn fills it in at its start
        pass


class ApiServer(uvicorn.Server):
    """Leaves signals to its owner, and ends only when no request runs any more.

    Uvicorn alone cancels what outlives the grace period without waiting for it: a request
    would then settle on a database that is closed already.
    """

    def __init__(self, config: uvicorn.Config, end_holds: Callable[[], None]) -> None:
        """``end_holds`` ends what only waits: it would use up the grace period of those that work."""
        self._leaving = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        super().__init__(config)
        self.server_state = _DatedState()
        self._end_holds = end_holds

    @property
    def should_exit(self) -> bool:
        """Whether the server was told to stop. Set from any thread."""
        return self._told_to_stop

    @should_exit.setter
    def should_exit(self, stop: bool) -> None:
        self._told_to_stop = stop
        if stop and self._loop is not None:
            self._loop.call_soon_threadsafe(self._leaving.set)

    async def main_loop(self) -> None:
        """Sleep until told to stop: uvicorn's own looks ten times a second, also when nobody asks anything."""
        self._loop = asyncio.get_running_loop()
        if not self._told_to_stop:
            await self._leaving.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take no signals."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, give running requests the grace period, cancel the rest, wait for them."""
        self._end_holds()
        await super().shutdown(sockets)
        if running := set(self.server_state.tasks):
            if self.force_exit:  # else they have been cancelled; twice would cut their settling short
                for task in running:
                    task.cancel()
            await asyncio.wait(running, timeout=SETTLE_S)


class PatientProtocol(H11Protocol):
    """HTTP/1.1 with a bound on how long headers may take, and errors in the API's shape."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first headers."""
        super().connection_made(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop to wait."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; a trickle of them does not extend the wait."""
        super().data_received(data)
        if self._is_answering():
            self._stop_waiting()
        elif self._late is None:
            self._expect_headers()

    def _expect_headers(self) -> None:
        self._late = self.loop.call_later(HEADER_TIMEOUT_S, self._headers_are_late)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _headers_are_late(self) -> None:
        self._late = None
        if not self.transport.is_closing() and not self._is_answering():
            self.transport.close()

    def _is_answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # None until the first request, against its annotation
        return cycle is not None and not cycle.response_complete

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, or has too large headers, as every other error is written."""
        body = JSON.encode(error_object(InvalidRequest("the request is not valid HTTP", code="invalid_http")))
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
        self.transport.close()
