"""One conversation with the whole program, from source: what it answered, as JSON. Run by scripts/arm_check.py, here and there.

    python scripts/arm_conversation.py      with the program and what it needs on the path for modules

Starts ``outrider serve`` in a scratch folder, asks it over HTTP by the standard library only, and ends it. Exit code 1
with the program's last words when it does not get ready.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

MODEL = "smollm2-135m-instruct"
QUESTION = "What is the capital of France?"
ARTICLE, LABELS = "The match ended three to one after two late goals.", ["sport", "politics", "weather"]
READY_WITHIN_S, ANSWER_WITHIN_S = 600.0, 600.0
# qemu has no seccomp to offer; one thread and the weights of the file: sums in one order, of the same numbers.
SETTINGS = ("engine.confine=false", "engine.threads=1", "engine.weights=stored", "server.port=0")


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        data, log = Path(scratch) / "data", Path(scratch) / "log"
        options = [word for setting in SETTINGS for word in ("--set", setting)]
        command = [sys.executable, "-m", "agent", "--data-dir", str(data), *options, "serve"]
        with log.open("wb") as writer:
            daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer)
        try:
            told = conversation(daemon, data)
        except (TimeoutError, OSError, LookupError) as error:
            print(f"{log.read_text(encoding='utf-8', errors='replace')[-1000:]}\n{error}", file=sys.stderr)
            return 1
        finally:
            daemon.terminate()
            daemon.wait()
    print(json.dumps(told))
    return 0


def conversation(daemon: subprocess.Popen[bytes], data: Path) -> dict[str, Any]:
    """Return what it says to one question and one article. Raises OSError and TimeoutError when it does not."""
    until = time.monotonic() + READY_WITHIN_S
    address = data / "daemon.json"
    while True:
        try:
            url, token = json.loads(address.read_text())["url"], (data / "token").read_text().strip()
            state = asked(url, token, "/readyz", None)
        except (FileNotFoundError, urllib.error.HTTPError, json.JSONDecodeError):
            state = {"ready": False}
        if state["ready"]:
            break
        if daemon.poll() is not None or time.monotonic() > until:
            raise TimeoutError("the daemon does not get ready")
        time.sleep(0.2)
    chat = asked(
        url,
        token,
        "/v1/chat/completions",
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": QUESTION}],
            "temperature": 0,
            "max_tokens": 24,
            "logprobs": True,
        },
    )
    scores = asked(url, token, "/v1/classify", {"model": MODEL, "input": ARTICLE, "labels": LABELS})
    runtime = state["models"][0]["runtime"]
    return {"machine": f"{platform.machine()}, {runtime}", "chat": chat, "scores": scores}


def asked(url: str, token: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    """Return the program's reply. Raises OSError, HTTPError among them."""
    request = urllib.request.Request(
        f"{url.rstrip('/')}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=ANSWER_WITHIN_S) as reply:
        told: dict[str, Any] = json.load(reply)
    return told


if __name__ == "__main__":
    sys.exit(main())
