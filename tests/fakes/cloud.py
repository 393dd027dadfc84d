"""A target over real HTTP on loopback, with scripted behaviour and a record of all it received.

    async with Cloud() as cloud:
        cloud.script(status(500), rate_limited(seconds=2), ok("Paris"))
        ... base_url = cloud.base_url ...
        assert cloud.chats[0].json["model"] == "big"

Each POST takes the next behaviour of the script; an empty script means ``cloud.default``.
``GET /models`` takes from ``script_probes`` in the same way. ``down`` closes the port,
``up`` opens the same one again. For code that is not asyncio: ``with cloud_in_thread() as cloud``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from ipaddress import ip_address
from typing import Any, Self


@dataclass(frozen=True)
class Received:
    """One request as it arrived. Header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def last_user_text(self) -> str:
        texts = [m["content"] for m in self.json["messages"] if m["role"] == "user"]
        return texts[-1] if texts else ""


@dataclass(frozen=True)
class Exchange:
    """What a behaviour works with: the request, and the way back."""

    received: Received
    writer: asyncio.StreamWriter

    async def reply(
        self, status_code: int, body: bytes | dict[str, Any] = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        raw = json.dumps(body).encode() if isinstance(body, dict) else body
        self.writer.write(head(status_code, len(raw), headers) + raw)
        await self.writer.drain()


Behaviour = Callable[[Exchange], Awaitable[None]]


def head(status_code: int, length: int, headers: Mapping[str, str] | None = None) -> bytes:
    fields = {"content-type": "application/json", "content-length": str(length), **(headers or {})}
    lines = [f"HTTP/1.1 {status_code} Scripted", *(f"{name}: {value}" for name, value in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def completion(
    text: str | None,
    *,
    finish_reason: str | None = "stop",
    outrider: dict[str, Any] | None = None,
    model: str = "cloud-model",
) -> dict[str, Any]:
    """Return a chat.completion body."""
    body: dict[str, Any] = {
        "id": "chatcmpl-fake",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }
    if outrider is not None:
        body["outrider"] = outrider
    return body


def ok(text: str | None = None, **options: Any) -> Behaviour:
    """200 with ``text``, or "cloud: <last user text>"."""

    async def act(exchange: Exchange) -> None:
        answer = f"cloud: {exchange.received.last_user_text}" if text is None else text
        await exchange.reply(200, completion(answer, **options))

    return act


def status(code: int, *, error_code: str | None = None, headers: Mapping[str, str] | None = None) -> Behaviour:
    """An OpenAI-shaped error."""

    async def act(exchange: Exchange) -> None:
        error = {"message": f"scripted {code}", "type": "scripted_error", "param": None, "code": error_code}
        await exchange.reply(code, {"error": error}, headers)

    return act


def rate_limited(
    *, seconds: float | None = None, ms: int | None = None, at_ms: int | None = None, code: int = 429
) -> Behaviour:
    """429 (or ``code``) with Retry-After in seconds, in milliseconds, as a date, or without."""
    headers: dict[str, str] = {}
    if seconds is not None:
        headers["retry-after"] = f"{seconds:g}"
    if ms is not None:
        headers["retry-after-ms"] = str(ms)
    if at_ms is not None:
        headers["retry-after"] = formatdate(at_ms / 1000, usegmt=True)
    return status(code, error_code="rate_limit_exceeded", headers=headers)


def quota_used_up() -> Behaviour:
    """429 that no waiting helps."""
    return status(429, error_code="insufficient_quota")


def raw(code: int, body: bytes, content_type: str = "application/json", **headers: str) -> Behaviour:
    """Any status and body."""

    async def act(exchange: Exchange) -> None:
        await exchange.reply(code, body, {"content-type": content_type, **headers})

    return act


def html() -> Behaviour:
    """200 with a log-in page, as a captive portal does."""
    return raw(200, b"<html><body>Welcome to the hotel. Please log in.</body></html>", "text/html")


def redirect(location: str, code: int = 302) -> Behaviour:
    return raw(code, b"", location=location)


def cut_body() -> Behaviour:
    """200 whose body ends in the middle."""

    async def act(exchange: Exchange) -> None:
        body = json.dumps(completion("a text that never arrives whole")).encode()
        exchange.writer.write(head(200, len(body)) + body[: len(body) // 2])
        await exchange.writer.drain()
        exchange.writer.transport.abort()

    return act


def cut_before_reply() -> Behaviour:
    """The request is read, then the connection goes."""

    async def act(exchange: Exchange) -> None:
        exchange.writer.transport.abort()

    return act


def gated(release: asyncio.Event, then: Behaviour | None = None) -> Behaviour:
    """Answer only once ``release`` is set: a slow target without a clock."""

    async def act(exchange: Exchange) -> None:
        await release.wait()
        await (then or ok())(exchange)

    return act


def slow(seconds: float, then: Behaviour | None = None) -> Behaviour:
    """Answer after ``seconds``."""

    async def act(exchange: Exchange) -> None:
        await asyncio.sleep(seconds)
        await (then or ok())(exchange)

    return act


def hang() -> Behaviour:
    """Never answer."""

    async def act(_: Exchange) -> None:
        await asyncio.Event().wait()

    return act


def empty() -> Behaviour:
    return ok("")


def content_filter() -> Behaviour:
    return ok("", finish_reason="content_filter")


def huge(size: int = 16 << 20) -> Behaviour:
    """A well-formed answer of more than ``size`` bytes."""
    return ok("x" * size)


def models() -> Behaviour:
    """The list of models, as a probe expects it."""

    async def act(exchange: Exchange) -> None:
        await exchange.reply(200, {"object": "list", "data": [{"id": "cloud-model", "object": "model"}]})

    return act


@dataclass
class Cloud:
    """The server. Bound to ``host`` on a port of its own, kept over ``down`` and ``up``."""

    tls: ssl.SSLContext | None = None
    host: str = "127.0.0.1"
    port: int = 0
    default: Behaviour = field(default_factory=ok)
    default_probe: Behaviour = field(default_factory=models)
    requests: list[Received] = field(default_factory=list)
    _script: deque[Behaviour] = field(default_factory=deque)
    _probes: deque[Behaviour] = field(default_factory=deque)
    _server: asyncio.Server | None = None
    _handlers: set[asyncio.Task[Any]] = field(default_factory=set)
    _arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def __aenter__(self) -> Self:
        await self.up()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.down()

    @property
    def _address(self) -> str:
        try:
            return str(ip_address(self.host))
        except ValueError:
            return "127.0.0.1"

    @property
    def base_url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}/v1"

    @property
    def chats(self) -> list[Received]:
        return [request for request in self.requests if request.method == "POST"]

    @property
    def probes(self) -> list[Received]:
        return [request for request in self.requests if request.method == "GET"]

    @property
    def keys(self) -> list[str]:
        """The Idempotency-Key of each chat, in the order of arrival."""
        return [request.headers.get("idempotency-key", "") for request in self.chats]

    def script(self, *behaviours: Behaviour) -> None:
        self._script.extend(behaviours)

    def script_probes(self, *behaviours: Behaviour) -> None:
        self._probes.extend(behaviours)

    async def received(self, count: int, kind: str = "chats") -> None:
        """Wait until ``count`` chats (or "probes") have arrived in all."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(getattr(self, kind)) >= count)

    async def up(self) -> None:
        self._server = await asyncio.start_server(self._serve, self.host, self.port, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        """Close the port and every connection; later connects are refused."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in self._handlers:
            task.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            while (received := await _read_request(reader)) is not None:
                async with self._arrived:
                    self.requests.append(received)
                    self._arrived.notify_all()
                await self._behaviour(received)(Exchange(received, writer))
        except (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the other side went away, or the test is over
        finally:
            self._handlers.discard(task)
            writer.transport.abort()

    def _behaviour(self, received: Received) -> Behaviour:
        if received.method == "GET":
            return self._probes.popleft() if self._probes else self.default_probe
        return self._script.popleft() if self._script else self.default


async def _read_request(reader: asyncio.StreamReader) -> Received | None:
    try:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except asyncio.IncompleteReadError:
        return None
    method, path, _ = lines[0].split(" ", 2)
    headers = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        if name:
            headers[name.strip().lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method, path, headers, body)


@contextlib.contextmanager
def cloud_in_thread() -> Iterator[Cloud]:
    """Run a Cloud on a thread of its own, for tests that are not asyncio."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def make() -> Cloud:
        return await Cloud().__aenter__()

    cloud = asyncio.run_coroutine_threadsafe(make(), loop).result()
    try:
        yield cloud
    finally:
        asyncio.run_coroutine_threadsafe(cloud.down(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
