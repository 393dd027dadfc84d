"""A target that speaks the OpenAI API: a cloud, a vLLM or LiteLLM cluster, another Outrider.

The address is looked up here and the connection made to it by number (TLS still checks the
name), so that a hanging resolver falls under the connect timeout. Redirects are never
followed, proxies of the environment never used, replies bounded in size and time. Before the
first byte of the body has left, every failure is Offline; after it, Retry. Each send has a
connection of its own: on one kept alive over a cut, the body would leave into nowhere and
cost an attempt, where a new connect fails as Offline.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx2
import msgspec

from agent import __version__
from agent.errors import ConfigError
from agent.escalation import redaction, schema_check
from agent.escalation.certificates import verifying
from agent.escalation.consent import as_it_is, holds_media, seen_by_a_person
from agent.escalation.handoff import chat_body
from agent.escalation.personal_data import CannotRedactNow, Recogniser
from agent.escalation.redaction import Redacted
from agent.escalation.replies import HttpReply, read_probe, read_reply
from agent.escalation.resolver import Resolver
from agent.escalation.target import UNCOUNTED, Blocked, Delivered, Offline, Outcome, ProbeOutcome, Rejected, Retry
from agent.records import Escalation, RequestRecord
from agent.settings import ConnectivitySettings, TargetSettings
from agent.storage.costs import of_answer
from agent.text_settings import RedactionSettings

PROBE_TIMEOUT_S = 10.0  # from connect to the whole list of models
ERROR_BODY_BYTES = 64 << 10  # an error's code stands at its beginning
_DEFAULT_PORTS = {"http": 80, "https": 443}
# A peer that vanished without a word is noticed in half a minute, not after the target's whole timeout.
_KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4))
        if hasattr(socket, name)
    ),
]


class _NotConfigured(Exception):
    """The key or the certificate authority of the target cannot be used."""


class _TooLarge(Exception):
    """The reply is above the limit."""


class _Encoded(Exception):
    """The reply is compressed although that was declined."""


class _Passage:
    """What has become of one exchange so far."""

    def __init__(self) -> None:
        self.left = False

    async def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Note the moment from which bytes of the body may be on the wire."""
        if event.endswith(".send_request_body.started"):
            self.left = True


def _nobody_knows_names(_text: str) -> list[tuple[int, int]]:
    raise CannotRedactNow("redaction.names is a model that only the running daemon can ask: start it")


class OpenAITarget:
    """Implements Target. Safe for several sends at once."""

    def __init__(
        self,
        settings: TargetSettings,
        connectivity: ConnectivitySettings,
        redaction: RedactionSettings,
        *,
        now_ms: Callable[[], int],
        names: Recogniser | None = None,
    ) -> None:
        """``names`` is asked where the redaction names a model for them."""
        self._settings = settings
        self._terms = redaction.terms
        self._names = (names or _nobody_knows_names) if redaction.names else None
        self._now_ms = now_ms
        self._connect_timeout_s = connectivity.connect_timeout_s
        self._resolver = Resolver()
        self._client: httpx2.AsyncClient | None = None
        self._deadlines: set[asyncio.Timeout] = set()
        try:
            self._url = httpx2.URL(settings.base_url.rstrip("/"))
        except httpx2.InvalidURL as error:
            raise ConfigError(f"target {settings.name}: base_url {settings.base_url!r}: {error}") from error
        self._host = self._url.raw_host.decode("ascii")
        self._port = self._url.port or _DEFAULT_PORTS[self._url.scheme]
        if self._port > 65535:
            raise ConfigError(f"target {settings.name}: base_url {settings.base_url!r}: no such port")

    @property
    def settings(self) -> TargetSettings:
        return self._settings

    def outgoing(self, record: RequestRecord, row: Escalation) -> Redacted:
        """Return exactly the bytes that would leave, and the way back. Raises BodyGone past the retention, CannotRedact."""
        body = chat_body(record, row, self._settings.model, ceiling=self._settings.max_output_tokens)
        if as_it_is(record, row, self._settings):
            return Redacted(redaction.without_image_metadata(body) if holds_media(record) else body, {})
        media = seen_by_a_person(record, row, self._settings)
        return redaction.redact(body, terms=self._terms, names=self._names, media=media)

    async def send(self, row: Escalation, record: RequestRecord, outgoing: Redacted) -> Outcome:
        """POST the body once; the row's id is the Idempotency-Key of every send."""
        passage = _Passage()
        hops = record.request.hops if record.request else 0
        headers = {"content-type": "application/json", "idempotency-key": row.id, "x-outrider-hops": str(hops + 1)}
        if not self._settings.chain:
            headers |= {"x-outrider-on-low-confidence": "abstain", "x-outrider-route-mode": "local_only"}
        try:
            async with self._deadline(self._settings.timeout_s):
                reply = await self._exchange("POST", "/chat/completions", headers, outgoing.body, passage)
        except _NotConfigured as problem:
            return Blocked(str(problem), left=False)
        except _TooLarge:
            return Rejected(f"the reply is larger than {self._settings.max_reply_bytes} bytes", used=UNCOUNTED)
        except _Encoded:
            return Blocked("the reply is compressed although that was declined")
        except (OSError, TimeoutError, httpx2.RequestError) as error:
            if passage.left:
                return Retry(_words(error), silent=True)
            return Offline(_words(error))
        if reply.status == 200 and outgoing.values:
            restored = await asyncio.to_thread(redaction.restore, reply.body, outgoing.values)
            reply = msgspec.structs.replace(reply, body=restored)
        outcome = read_reply(reply, record, row, now_ms=self._now_ms())
        if not isinstance(outcome, Delivered) or record.request is None:
            return outcome
        try:
            async with self._deadline(2 * schema_check.CHECK_S):
                wrong = await schema_check.fault(outcome.answer, record.request)
        except TimeoutError:
            return Retry("the sends were given up before the answer was checked")
        if wrong:
            return Rejected(f"the answer is not what was asked for: {wrong}", used=of_answer(outcome.answer))
        return outcome

    async def probe(self) -> ProbeOutcome:
        """GET the list of models."""
        try:
            async with self._deadline(PROBE_TIMEOUT_S):
                reply = await self._exchange("GET", "/models", {}, b"", _Passage())
        except _NotConfigured as problem:
            return Blocked(str(problem), left=False)
        except (_TooLarge, _Encoded):
            return Offline("200, but not a list of models: something else answers", portal=True)
        except (OSError, TimeoutError, httpx2.RequestError) as error:
            return Offline(_words(error))
        return read_probe(reply, now_ms=self._now_ms())

    def give_up(self) -> None:
        """Let the deadline of every exchange under way pass now."""
        now = asyncio.get_running_loop().time()
        for deadline in self._deadlines:
            if not deadline.expired():
                deadline.reschedule(now)

    async def close(self) -> None:
        """Close idle connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    @contextlib.asynccontextmanager
    async def _deadline(self, seconds: float) -> AsyncIterator[None]:
        async with asyncio.timeout(seconds) as deadline:
            self._deadlines.add(deadline)
            try:
                yield
            finally:
                self._deadlines.discard(deadline)

    async def _exchange(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, passage: _Passage
    ) -> HttpReply:
        """Try each address of the target until one connects; all within the connect timeout."""
        client = self._connected_client()
        headers = {**self._fixed_headers(), **headers}
        clock = asyncio.get_running_loop().time
        until = clock() + self._connect_timeout_s
        async with asyncio.timeout_at(until):
            addresses = await self._resolver.addresses(self._host, self._port)
        for tried, address in enumerate(addresses):
            share_s = max(until - clock(), 0.01) / (len(addresses) - tried)
            request = client.build_request(
                method,
                self._url.copy_with(host=address, path=f"{self._url.path.rstrip('/')}{path}"),
                headers=headers,
                content=body,
                timeout=httpx2.Timeout(None, connect=share_s),
                extensions={"sni_hostname": self._host, "trace": passage.trace},
            )
            try:
                return await self._fetch(client, request)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                if passage.left or tried == len(addresses) - 1:
                    raise
        raise socket.gaierror(socket.EAI_NONAME, "the name has no address")

    async def _fetch(self, client: httpx2.AsyncClient, request: httpx2.Request) -> HttpReply:
        response = await client.send(request, stream=True)
        try:
            whole = response.status_code == 200
            if whole and response.headers.get("content-encoding", "identity") != "identity":
                raise _Encoded
            limit = self._settings.max_reply_bytes if whole else ERROR_BODY_BYTES
            received = bytearray()
            async for chunk in response.aiter_raw():
                received += chunk
                if len(received) > limit:
                    if whole:
                        raise _TooLarge
                    break
            return HttpReply(response.status_code, dict(response.headers), bytes(received))
        finally:
            await response.aclose()

    def _fixed_headers(self) -> dict[str, str]:
        default_port = self._port == _DEFAULT_PORTS[self._url.scheme]
        host = f"[{self._host}]" if ":" in self._host else self._host
        headers = {
            "host": host if default_port else f"{host}:{self._port}",
            "accept": "application/json",
            "accept-encoding": "identity",  # so that the limit on a reply is a limit on memory
            "user-agent": f"outrider/{__version__}",
        }
        if key := self._api_key():
            headers["authorization"] = f"Bearer {key}"
        return headers

    def _api_key(self) -> str:
        """Read the key anew each time: a renewed one needs no restart."""
        if variable := self._settings.api_key_env:
            key = os.environ.get(variable, "").strip()
            if not key:
                raise _NotConfigured(f"environment variable {variable} (api_key_env) is not set")
        elif name := self._settings.api_key_file:
            key = _read_private(Path(name).expanduser())
        else:
            return ""
        if not key.isascii() or not key.isprintable() or " " in key:
            raise _NotConfigured("the API key holds characters that no header may carry")
        return key

    def _connected_client(self) -> httpx2.AsyncClient:
        if self._client is None:
            transport = httpx2.AsyncHTTPTransport(
                verify=self._tls(),
                retries=0,
                limits=httpx2.Limits(max_keepalive_connections=0),
                socket_options=_KEEPALIVE,
            )
            self._client = httpx2.AsyncClient(transport=transport, trust_env=False, follow_redirects=False)
        return self._client

    def _tls(self) -> ssl.SSLContext:
        """Return the verifying context: the system's authorities, or the one that is configured."""
        name = self._settings.ca_file
        try:
            return verifying(name)
        except (OSError, ssl.SSLError) as error:
            raise _NotConfigured(f"ca_file {name} cannot be used: {error.strerror or 'not a PEM file'}") from error


def _read_private(path: Path) -> str:
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise _NotConfigured(f"api_key_file {path} is readable by others: chmod 600 {path}")
        key = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise _NotConfigured(f"api_key_file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise _NotConfigured(f"api_key_file {path} is not text") from None
    if not key:
        raise _NotConfigured(f"api_key_file {path} is empty")
    return key


def _words(error: Exception) -> str:
    """Say what happened, without a URL or any text of the exchange."""
    match error:
        case socket.gaierror():
            return "the name cannot be resolved"
        case httpx2.ConnectTimeout():
            return "connect: no answer in time"
        case TimeoutError() | httpx2.TimeoutException():
            return "no answer in time"
        case httpx2.ConnectError():
            return f"connect: {error}"
        case httpx2.RemoteProtocolError():
            return "the connection ended before the whole reply"
        case _:
            return f"the connection failed ({type(error).__name__})"
