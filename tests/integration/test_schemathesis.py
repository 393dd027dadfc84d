"""schemathesis, a fuzzer by somebody else, over our own document: no call of it is a fault of the daemon.

It is no dependency of ours (31 packages, 93 MB). To run it, in a virtual environment of its own:

    python3 -m venv /tmp/st && /tmp/st/bin/pip install schemathesis
    SCHEMATHESIS=/tmp/st/bin/schemathesis .venv/bin/python -m pytest tests/integration/test_schemathesis.py -s

``SCHEMATHESIS_EXAMPLES`` (3) says how many calls it draws for each operation, beside those that it derives.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from fakes.daemon_process import DaemonProcess

PROGRAM = shutil.which(os.environ.get("SCHEMATHESIS", "schemathesis"))
MODEL = "smollm2-135m-instruct"
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="NO SCHEMATHESIS: this file says how to get it")


HOOKS = Path(__file__).resolve().parents[1] / "fakes"


def seeded(daemon):
    """Make one of everything that has a name, and return [beginning of a path, parameter, value]."""
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": MODEL, "messages": []}}
    task = {"name": "mail", "labels": ["spam", "ham"]}
    with daemon.client(admin=True) as client:
        asked = daemon.chat("hello").json()["outrider"]["request_id"]
        waits = daemon.chat("unsure").json()["outrider"]["request_id"]
        response = client.post("/v1/responses", json={"model": MODEL, "input": "hello"}).json()["id"]
        file = client.post("/v1/files", files={"file": json.dumps(line).encode()}, data={"purpose": "batch"}).json()[
            "id"
        ]
        order = {"input_file_id": file, "endpoint": line["url"], "completion_window": "24h"}
        batch = client.post("/v1/batches", json=order).json()["id"]
        made = client.post("/v1/tasks", json=task)
    assert made.status_code < 300, made.text
    return [
        ["/v1/", "model", MODEL], ["/v1/feedback", "request_id", asked], ["/v1/requests", "id", asked],
        ["/v1/queue", "id", waits], ["/v1/responses", "id", response], ["/v1/responses", "previous_response_id", response],
        ["/v1/files", "id", file], ["/v1/batches", "id", batch], ["/v1/batches", "input_file_id", file],
        ["/v1/tasks", "name", "mail"], ["/v1/classify", "task", "mail"], ["/v1/models", "id", MODEL],
    ]  # fmt: skip


def test_no_call_of_the_document_is_a_fault(tmp_path, capsys):
    daemon = DaemonProcess(tmp_path / "device").start()
    command = [
        PROGRAM, "run", f"{daemon.url}/openapi.json", "-H", f"Authorization: Bearer {daemon.token('admin-token')}",
        "--checks", "not_a_server_error", "--max-examples", os.environ.get("SCHEMATHESIS_EXAMPLES", "3"),
        "--seed", "1", "--request-timeout", "20", "--exclude-path-regex", "/events$|/reload$",
    ]  # fmt: skip
    environment = {
        **daemon.environment, "SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(HOOKS),
        "OUTRIDER_KNOWN": json.dumps(seeded(daemon)),
    }  # fmt: skip
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    with capsys.disabled():
        print(done.stdout[done.stdout.find("= SUMMARY") :])
    assert done.returncode == 0, done.stdout[-5000:]
    assert "internal error" not in daemon.log()
    assert "Traceback" not in (daemon.folder / "log").read_text()
    assert daemon.stop() == 0
