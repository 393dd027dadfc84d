"""Changes of the device's own network: datagrams by hand, and a real link in a namespace of its own."""

import asyncio
import os
import shutil
import socket
import struct
import subprocess
import sys

import pytest

from agent.escalation.netlink import RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE, LinkWatcher, messages

RTM_DELLINK = 17
RUNNING = 0x40


def message(kind, payload=b""):
    length = 16 + len(payload)
    return struct.pack("=IHHII", length, kind, 0, 0, 0) + payload + b"\0" * (-length % 4)


def link(index, flags):
    return message(RTM_NEWLINK, struct.pack("=BxHiII", 0, 1, index, flags, 0))


@pytest.fixture
def watcher():
    return LinkWatcher(lambda: None)


def test_addresses_and_routes_are_news(watcher):
    assert watcher.tells_change(message(RTM_NEWADDR, b"abc"))
    assert watcher.tells_change(message(RTM_NEWROUTE))
    assert not watcher.tells_change(message(RTM_DELLINK))


def test_a_link_is_news_when_it_comes_up(watcher):
    assert not watcher.tells_change(link(3, 0))
    assert watcher.tells_change(link(3, RUNNING))
    assert not watcher.tells_change(link(3, RUNNING))
    assert watcher.tells_change(link(4, RUNNING))
    assert not watcher.tells_change(link(3, 0))
    assert watcher.tells_change(link(3, RUNNING))


def test_every_message_of_a_datagram_is_noted(watcher):
    assert watcher.tells_change(link(3, RUNNING) + link(4, RUNNING))
    assert not watcher.tells_change(link(4, RUNNING))


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 7, struct.pack("=IHHII", 4, 16, 0, 0, 0), struct.pack("=IHHII", 900, 20, 0, 0, 0)]
)
def test_broken_datagrams_say_nothing(watcher, data):
    assert list(messages(data)) == []
    assert not watcher.tells_change(data)


def test_a_short_link_message_is_no_news(watcher):
    assert not watcher.tells_change(message(RTM_NEWLINK, b"\0" * 4))


@pytest.mark.skipif(not hasattr(socket, "AF_NETLINK"), reason="Linux only")
async def test_changes_are_told_together(monkeypatch):
    monkeypatch.setattr("agent.escalation.netlink.DEBOUNCE_S", 0.01)
    told = asyncio.Queue()
    watcher = LinkWatcher(lambda: told.put_nowait("changed"))
    assert watcher.start()
    try:
        for _ in range(5):
            watcher._changed()
        await told.get()
        await asyncio.sleep(0.05)
        assert told.empty()
    finally:
        watcher.stop()


async def test_without_netlink_the_backoff_decides_alone(monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(socket, "socket", refuse)
    watcher = LinkWatcher(lambda: None)
    assert not watcher.start()
    watcher.stop()


CHILD = """
import asyncio, subprocess
from agent.escalation.netlink import LinkWatcher

async def main():
    told = asyncio.Event()
    watcher = LinkWatcher(told.set)
    assert watcher.start()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    await asyncio.wait_for(told.wait(), 10)
    watcher.stop()
    print("told")

asyncio.run(main())
"""


@pytest.mark.skipif(not (shutil.which("unshare") and shutil.which("ip")), reason="needs unshare and ip")
def test_a_real_link_that_comes_up_is_told():
    probe = subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("network namespaces are not allowed here")
    done = subprocess.run(
        ["unshare", "-rn", sys.executable, "-c", CHILD],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ, PYTHONPATH="."),
    )
    assert done.stdout == "told\n", done.stderr
