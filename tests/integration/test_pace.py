"""When a row may go: the pace of a narrow line, the wait that a reply names, a line that costs by the byte."""

import asyncio
import contextlib
import os
import shutil
import subprocess

import pytest
from fakes import cloud as fake
from fakes.dispatching import LongWait, NoWait, make, now_ms, queue_row, row_until, running, target

from agent.device import PowerState
from agent.escalation import lane as lanes
from agent.escalation.thrift import Thrift
from agent.settings import ConnectivitySettings

RATE = 100  # bytes a second
SYSTEM_PYTHON = "/usr/bin/python3"  # dbus and gi are packages of the system


async def settled(lane):
    """Let a lane do all that is due at this moment of its clock. Returns the seconds until there is more."""
    while True:
        wait_s = await lane._step()
        if lane._sends:
            await asyncio.wait(lane._sends)
        elif wait_s > 0:
            return wait_s


async def test_the_next_send_begins_when_the_line_has_carried_the_last(storage, cloud, monkeypatch):
    """However many may be under way at once."""
    clock = [1000.0]
    monkeypatch.setattr(lanes, "_monotonic_s", lambda: clock[0])
    dispatcher = make(storage)
    paced = target(cloud, bytes_per_s=RATE, concurrency=8)
    lane = dispatcher._lane(paced, dispatcher._redaction, dispatcher._budget)
    lane.circuit.found()
    for _ in range(20):
        lane.circuit.replied(usable=True)
    for number in range(4):
        await queue_row(storage, cloud, "x" * (500 + number))
    for sent in range(1, 5):
        wait_s = await settled(lane)
        assert len(cloud.chats) == sent
        carried_s = len(cloud.chats[-1].body) / RATE
        if sent < 4:
            assert wait_s == pytest.approx(carried_s, abs=0.001)
        clock[0] += carried_s - 0.001
        await settled(lane)
        assert len(cloud.chats) == sent
        clock[0] += 0.002
    await lane.finish(5.0)


@pytest.mark.parametrize("code", [408, 409, 500, 529])
async def test_retry_after_is_the_least_wait_whatever_the_backoff_drew(storage, cloud, code):
    cloud.script(fake.status(code, headers={"retry-after": "3600"}))
    async with running(storage, target(cloud), random=NoWait()) as dispatcher:
        before = now_ms()
        record = await queue_row(storage, cloud)
        dispatcher.wake()
        row = await row_until(storage, record, lambda row: row.attempts == 1)
    assert row.available_at_ms >= before + 3_600_000
    assert len(cloud.chats) == 1


async def test_a_shorter_retry_after_does_not_shorten_the_backoff(storage, cloud):
    cloud.script(fake.status(500, headers={"retry-after": "1"}))
    async with running(storage, target(cloud), random=LongWait()) as dispatcher:
        before = now_ms()
        record = await queue_row(storage, cloud)
        dispatcher.wake()
        row = await row_until(storage, record, lambda row: row.attempts == 1)
    assert row.available_at_ms >= before + 2_000  # the longest that the first backoff draws


# --- a real system bus ----------------------------------------------------------------

SERVICE = """
import sys, dbus, dbus.service
from dbus.mainloop.glib import DBusGMainLoop
from gi.repository import GLib

DBusGMainLoop(set_as_default=True)
NAME = "org.freedesktop.NetworkManager"

class NetworkManager(dbus.service.Object):
    @dbus.service.method(dbus.PROPERTIES_IFACE, in_signature="ss", out_signature="v")
    def Get(self, interface, name):
        return dbus.UInt32(int(sys.argv[1]), variant_level=1) if (interface, name) == (NAME, "Metered") else ""

bus = dbus.SystemBus()
owned = dbus.service.BusName(NAME, bus)
NetworkManager(bus, "/org/freedesktop/NetworkManager")
print("ready", flush=True)
GLib.MainLoop().run()
"""
BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>custom</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth><policy context="default">
<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>
"""


def why_no_bus():
    missing = [name for name in ("dbus-daemon", "busctl", SYSTEM_PYTHON) if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found"
    has = subprocess.run([SYSTEM_PYTHON, "-c", "import dbus.service, gi.repository"], capture_output=True, check=False)
    return "" if has.returncode == 0 else "apt-get install python3-dbus python3-gi"


@contextlib.contextmanager
def network_manager(folder, metered):
    """A private system bus with a NetworkManager that says how the line is; None: with nobody on it."""
    config, path = folder / "bus.conf", folder / "bus"
    config.write_text(BUS.format(path=path))
    address = f"unix:path={path}"
    environment = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": address}
    started = []
    try:
        bus = ["dbus-daemon", f"--config-file={config}", "--nofork", "--print-address"]
        started.append(subprocess.Popen(bus, stdout=subprocess.PIPE, text=True))
        assert started[0].stdout.readline().startswith("unix:")
        if metered is not None:
            service = [SYSTEM_PYTHON, "-c", SERVICE, str(metered)]
            started.append(subprocess.Popen(service, stdout=subprocess.PIPE, text=True, env=environment))
            assert started[1].stdout.readline() == "ready\n"
        yield address
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(10)
            process.stdout.close()


@pytest.mark.skipif(bool(why_no_bus()), reason=f"NO D-BUS: {why_no_bus()}")
async def test_networkmanager_on_a_real_bus_is_understood(tmp_path, monkeypatch):
    """NMMetered: unknown, yes, no, yes as it guesses, no as it guesses; and nobody there."""
    for metered, held in ((0, False), (1, True), (2, False), (3, True), (4, False), (None, False)):
        folder = tmp_path / str(metered)
        folder.mkdir()
        with network_manager(folder, metered) as address:
            monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
            found = await Thrift(ConnectivitySettings(hold_on_metered=True), PowerState).reason()
        assert found == ("the line is metered" if held else ""), metered
