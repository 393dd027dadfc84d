"""A client that costs little: the machine under test is also the one that runs it.

One thread per request, ``http.client``, and no more parsing than the figures need.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

PATIENCE_S = 240.0
READ_BYTES = 1 << 16
CONTENT = b'"content":"'  # in every event with text, and in none that only ends an answer

T = TypeVar("T")


class Address(NamedTuple):
    """Where a server listens, and what it wants to see with each request."""

    host: str
    port: int
    headers: dict[str, str]


class Answer(NamedTuple):
    """One answer as its client saw it. Seconds from the moment the request was written."""

    completion_tokens: int
    prompt_tokens: int
    cached_tokens: int
    first_s: float  # to the first piece of text; of an answer that is not streamed, to its end
    last_s: float  # to the last piece of text
    total_s: float
    text: str


class Refused(Exception):
    """A server answered with anything but 200."""


def post(address: Address, path: str, body: object) -> Any:
    """Return the JSON that a server answers with. Raises Refused."""
    return _request(address, "POST", path, json.dumps(body).encode())


def get(address: Address, path: str) -> Any:
    """Return the JSON at a path. Raises Refused, OSError."""
    return _request(address, "GET", path, None)


def _request(address: Address, method: str, path: str, body: bytes | None) -> Any:
    connection = http.client.HTTPConnection(address.host, address.port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, body, {"content-type": "application/json", **address.headers})
        response = connection.getresponse()
        data = response.read()
        if response.status != 200:
            raise Refused(f"{path}: {response.status} {data[:500].decode(errors='replace')}")
        return json.loads(data)
    finally:
        connection.close()


def chat(address: Address, body: dict[str, Any]) -> Answer:
    """Ask for a chat completion, streamed if the body says so. Raises Refused."""
    return _streamed(address, body) if body.get("stream") else _whole(address, body)


def _whole(address: Address, body: dict[str, Any]) -> Answer:
    begun = time.perf_counter()
    found = post(address, "/v1/chat/completions", body)
    total = time.perf_counter() - begun
    return _answer(found["usage"], (total, total, total), found["choices"][0]["message"].get("content") or "")


def _answer(usage: dict[str, Any], seconds: tuple[float, float, float], text: str) -> Answer:
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Answer(usage["completion_tokens"], usage["prompt_tokens"], cached, *seconds, text)


def _streamed(address: Address, body: dict[str, Any]) -> Answer:
    connection = http.client.HTTPConnection(address.host, address.port, timeout=PATIENCE_S)
    data = bytearray()
    first = None
    last = 0.0
    seen = 0  # bytes of events that were looked at for the first text
    begun = time.perf_counter()
    try:
        headers = {"content-type": "application/json", **address.headers}
        connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
        response = connection.getresponse()
        while piece := response.read1(READ_BYTES):
            data += piece
            if CONTENT in piece:
                last = time.perf_counter() - begun
            if first is None:
                end = data.rfind(b"\n\n")
                if end > seen and any(map(_text, _events(bytes(data[seen:end])))):
                    first = time.perf_counter() - begun
                seen = max(seen, end)
        total = time.perf_counter() - begun
        if response.status != 200:
            raise Refused(f"{response.status} {bytes(data[:500]).decode(errors='replace')}")
    finally:
        connection.close()
    events = _events(bytes(data))
    usage = next((event["usage"] for event in reversed(events) if event.get("usage")), None)
    if usage is None:
        raise Refused(f"the stream ended without its usage: {bytes(data[-500:]).decode(errors='replace')}")
    return _answer(usage, (total if first is None else first, last or total, total), "".join(map(_text, events)))


def _events(data: bytes) -> list[dict[str, Any]]:
    lines = (line.removeprefix(b"data: ") for line in data.splitlines() if line.startswith(b"data: "))
    return [json.loads(line) for line in lines if line != b"[DONE]"]


def _text(event: dict[str, Any]) -> str:
    choices = event.get("choices")
    return (choices[0]["delta"].get("content") or "") if choices else ""


def at_once(calls: Sequence[Callable[[], T]]) -> tuple[list[T], float]:
    """Make all calls at the same moment; return what they return and the seconds until the last is done.

    Raises what the first of them raised.
    """
    results: list[T | BaseException | None] = [None] * len(calls)
    ready = threading.Barrier(len(calls) + 1)

    def one(index: int, call: Callable[[], T]) -> None:
        ready.wait()
        try:
            results[index] = call()
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=one, args=(index, call)) for index, call in enumerate(calls)]
    for thread in threads:
        thread.start()
    ready.wait()
    begun = time.perf_counter()
    for thread in threads:
        thread.join()
    spent = time.perf_counter() - begun
    found: list[T] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        found.append(result)  # type: ignore[arg-type]
    return found, spent
