"""The way out of the demo: a port on this machine, closed at first, opened later.

Behind it is either the user's own target (its real answers, through a relay, so that the way
can be closed and opened) or a stand-in: real HTTP, canned answers, labelled as such.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import httpx2

CANNED_MODEL = "stand-in-with-canned-answers"
_HOP_HEADERS = {"host", "connection", "content-length", "transfer-encoding", "keep-alive"}
_KEPT_REPLY_HEADERS = ("content-type", "retry-after", "location")


class Reply(NamedTuple):
    """What is sent back."""

    status: int
    headers: Mapping[str, str]
    body: bytes


Answer = Callable[[str, str, Mapping[str, str], bytes], Reply]
"""From method, path, headers and body to the reply."""


class WayOut(ThreadingHTTPServer):
    """Holds its port from the start; connections are refused until ``open`` is called."""

    daemon_threads = True

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler, bind_and_activate=False)
        self.answer = answer
        self.received: list[bytes] = []  # the body of every POST, as it came over the wire
        self.server_bind()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def open(self) -> None:
        """Listen and answer, until the process ends or ``close`` is called."""
        self.server_activate()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: WayOut
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._reply(b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        self.server.received.append(body)
        self._reply(body)

    def _reply(self, body: bytes) -> None:
        reply = self.server.answer(self.command, self.path, dict(self.headers.items()), body)
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        """Say nothing: the demo tells what happens."""


def stand_in(answers: Mapping[str, str]) -> Answer:
    """Answer like an OpenAI endpoint, from a fixed table of questions."""

    def answer(method: str, path: str, _headers: Mapping[str, str], body: bytes) -> Reply:
        if (method, path) == ("GET", "/v1/models"):
            return _json(200, {"object": "list", "data": [{"id": CANNED_MODEL, "object": "model"}]})
        if (method, path) != ("POST", "/v1/chat/completions"):
            return _json(404, {"error": {"message": "no such route", "type": "invalid_request_error"}})
        said = [message["content"] for message in json.loads(body)["messages"]]  # of a choice, the labels come last
        canned = next((answers[text] for text in said if text in answers), "There is no canned answer to this.")
        message = {"role": "assistant", "content": canned}
        return _json(
            200,
            {
                "id": "chatcmpl-canned",
                "object": "chat.completion",
                "model": CANNED_MODEL,
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
            },
        )

    return answer


def relay(base_url: str, ca_file: str, timeout_s: float) -> Answer:
    """Pass everything on to a real target, over TLS that is verified, and its answer back."""
    verify = ssl.create_default_context(cafile=ca_file or None)
    client = httpx2.Client(verify=verify, timeout=timeout_s, follow_redirects=False, trust_env=False)

    def answer(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        kept = {name: value for name, value in headers.items() if name.lower() not in _HOP_HEADERS}
        url = base_url.rstrip("/") + path.removeprefix("/v1")
        try:
            got = client.request(method, url, headers=kept, content=body)
        except httpx2.RequestError as error:
            return _json(502, {"error": {"message": f"the target cannot be reached: {type(error).__name__}"}})
        return Reply(got.status_code, {n: got.headers[n] for n in _KEPT_REPLY_HEADERS if n in got.headers}, got.content)

    return answer


def _json(status: int, value: object) -> Reply:
    return Reply(status, {"content-type": "application/json"}, json.dumps(value).encode())
