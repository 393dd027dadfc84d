"""Server-sent events, and work that ends when its caller leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TypeVar

from starlette.types import Receive, Scope, Send

from agent.api.wire import JSON, error_object
from agent.errors import OutriderError, ShuttingDown
from agent.telemetry import log_fault

T = TypeVar("T")

WAITING = b": waiting\n\n"
DONE = b"data: [DONE]\n\n"
_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8")]


class ClientGone(Exception):
    """The client closed the connection; nobody reads an answer any more."""


async def while_connected(receive: Receive, work: Coroutine[None, None, T]) -> T:
    """Return what ``work`` returns, or cancel it and raise ClientGone when the client leaves.

    The request's body must have been read. Whatever ``work`` does on its way out is awaited.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventWriter:
    """The open end of a stream. The response starts with the first event or comment."""

    def __init__(self, send: Send, headers: Mapping[str, str]) -> None:
        self._send = send
        self._headers = dict(headers)
        self.started = False
        self.finished = False
        self._sends = 0
        self._sending = False

    def set_header(self, name: str, value: str) -> None:
        """Add a header; without effect once the response has started."""
        self._headers[name] = value

    async def event(self, data: object) -> None:
        """Write one ``data:`` event, under the name of its type where it has one."""
        name = data.get("type") if isinstance(data, dict) else None
        head = b"event: " + str(name).encode() + b"\n" if name else b""
        await self.write(head + b"data: " + JSON.encode(data) + b"\n\n")

    async def write(self, raw: bytes, *, last: bool = False) -> None:
        """Write bytes that form whole events."""
        self._sends += 1
        self._sending = True
        self.finished = last
        if not self.started:
            self.started = True
            headers = _HEADERS + [(name.encode(), value.encode()) for name, value in self._headers.items()]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": raw, "more_body": not last})
        self._sending = False

    async def keep_alive(self, every_s: float) -> None:
        """Write a comment whenever nothing was written for ``every_s`` seconds.

        Returns when the client has not taken a write for that long: it does not read.
        """
        while True:
            before = self._sends
            await asyncio.sleep(every_s)
            if self._sends != before:
                continue
            if self._sending:
                return
            try:
                async with asyncio.timeout(every_s):
                    await self.write(WAITING)
            except TimeoutError:
                return


class EventStream:
    """A response that writes events until ``produce`` returns.

    An error before the first byte is raised, and becomes an ordinary error response; a later
    one is written as an event. A client that leaves, or does not read, cancels ``produce``.
    """

    def __init__(
        self,
        produce: Callable[[EventWriter], Awaitable[None]],
        *,
        heartbeat_s: float,
        headers: Mapping[str, str] | None = None,
        fault: Callable[[OutriderError], object] = error_object,
    ) -> None:
        """``fault`` makes the event that tells an error."""
        self._produce = produce
        self._heartbeat_s = heartbeat_s
        self._headers = headers or {}
        self._fault = fault

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        writer = EventWriter(send, self._headers)
        try:
            await while_connected(receive, self._while_read(writer))
        except ClientGone:
            if not writer.finished:  # the end of the response looks like a client that left
                raise
        except asyncio.CancelledError:
            # Only the server's stop cancels from outside.
            if not writer.started:
                raise
            if writer.finished:
                return
            await self._fail(writer, ShuttingDown("the daemon is stopping; what was accepted stays in the queue"))

    async def _while_read(self, writer: EventWriter) -> None:
        work = asyncio.ensure_future(self._run(writer))
        alive = asyncio.ensure_future(writer.keep_alive(self._heartbeat_s))
        try:
            await asyncio.wait((work, alive), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ClientGone
            work.result()
        finally:
            work.cancel()
            alive.cancel()
            await asyncio.gather(work, alive, return_exceptions=True)

    async def _run(self, writer: EventWriter) -> None:
        try:
            await self._produce(writer)
        except OutriderError as error:
            if not writer.started:
                raise
            await self._fail(writer, error)
        except Exception:
            if not writer.started:
                raise
            log_fault("in a stream")
            await self._fail(writer, OutriderError("internal error; see the daemon's log"))
        else:
            await writer.write(DONE, last=True)

    async def _fail(self, writer: EventWriter, error: OutriderError) -> None:
        await writer.event(self._fault(error))
        await writer.write(DONE, last=True)
