"""Clients of ``/v1/embeddings`` in a process of their own: they share the machine with what they measure.

    python benchmarks/encoder_load.py URL TOKEN CLIENTS TEXTS SECONDS

Each client has one connection and sends its next request when it has the answer to the last.
Writes one JSON object: texts per second, and the seconds of every request.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from urllib.parse import urlsplit

MODEL = "minilm-l6-v2-int8"


def main() -> None:
    url, token, clients, texts, seconds = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
    parts = urlsplit(url)
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    run = time.time_ns() // 10**8 % 10_000  # an earlier run has sent other texts
    times: list[float] = []
    failures: list[str] = []
    barrier = threading.Barrier(clients + 1)

    def client(number: int) -> None:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        barrier.wait()
        until = time.perf_counter() + seconds
        asked = 0
        while (began := time.perf_counter()) < until:
            said = [text(f"{run:04}-{number}", asked * texts + n) for n in range(texts)]
            body = json.dumps({"model": MODEL, "input": said, "encoding_format": "base64"})
            connection.request("POST", "/v1/embeddings", body, headers)
            response = connection.getresponse()
            data = response.read()
            if response.status != 200:
                failures.append(data[:300].decode(errors="replace"))
                return
            times.append(time.perf_counter() - began)
            asked += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    barrier.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    span = time.perf_counter() - began
    if failures:
        sys.exit(failures[0])
    print(json.dumps({"texts_per_s": len(times) * texts / span, "seconds": times}))


def text(client: str, number: int) -> str:
    """Return a short text, of about twelve tokens, that nobody has sent before: nothing of it is in a cache."""
    return f"Train {number:04} of line {client}: which gate?"


if __name__ == "__main__":
    main()
