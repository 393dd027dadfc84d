"""A thousand clients at once, over real sockets: few are served, the others are told to come back, nobody hangs."""

import asyncio
import json
import resource

import psutil
import pytest
from fakes.daemon_process import DaemonProcess

CLIENTS = 1000
ROOM = 6
CONFIG = f"""
[engine]
parallel = 2
waiting_line = {ROOM - 2}
"""


@pytest.fixture
def daemon(tmp_path, request):
    """A daemon that may open as many files as a Linux or, as a Mac, only some 200."""
    limit = ("prlimit", f"--nofile={request.param}")
    process = DaemonProcess(tmp_path / "device", CONFIG, command_prefix=limit).start()
    yield process
    assert process.stop() == 0, process.log()


@pytest.fixture
def many_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < CLIENTS + 100:
        pytest.skip(f"this machine allows {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, CLIENTS + 100), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def post(daemon, text, **fields):
    body = json.dumps(
        {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": text}], **fields}
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {daemon.token()}\r\n"
        f"content-type: application/json\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def exchange(port, data):
    """Return status, headers and body of one request on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), headers, body


@pytest.mark.parametrize(("daemon", "clients"), [(4096, 1000), (200, 300)], indirect=["daemon"])
async def test_a_thousand_at_once(daemon, clients, many_files):
    port = int(daemon.url.rpartition(":")[2])
    assert (await exchange(port, post(daemon, "hello")))[0] == 200
    before = psutil.Process(daemon.pid).memory_info().rss
    data, streamed = post(daemon, "slow"), post(daemon, "slow", stream=True)
    async with asyncio.timeout(90):
        answers = await asyncio.gather(
            *(exchange(port, streamed if number % 3 == 0 else data) for number in range(clients))
        )
    statuses = [status for status, _, _ in answers]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= ROOM
    for status, headers, body in answers:
        if status == 429:
            assert int(headers["retry-after"]) >= 1
            assert json.loads(body)["error"]["code"] == "busy"
        elif "text/event-stream" in headers["content-type"]:
            assert b"data: [DONE]" in body
        else:
            assert json.loads(body)["choices"][0]["message"]["content"].endswith("w49")
    assert psutil.Process(daemon.pid).memory_info().rss - before < 128 << 20
    # Nothing is left of the crowd: the next one is served.
    assert (await exchange(port, post(daemon, "hello")))[0] == 200
    with daemon.client() as client:
        (status,) = client.get("/readyz").json()["models"]
    assert (status["active"], status["waiting"], status["crashes"]) == (0, 0, 0)
