"""R9: the wall clock is set, forwards and backwards, and the device sleeps.

Wanted: nothing expires early, a send that is under way keeps its lease, everything is delivered once.
"""

import asyncio
import os
import signal
import time

import pytest
from fakes.cloud import cloud_in_thread, gated, ok
from fakes.daemon_process import DaemonProcess
from fakes.preload import WallClock
from test_r01_kills import drained

YEAR = 365 * 86_400
JUMPS = {"+10 years": 10 * YEAR, "-2 years": -2 * YEAR, "+1 hour": 3600, "-1 hour": -3600, "+2 s": 2, "-2 s": -2}
CONFIG = """
[queue]
lease_s = 400

[[targets]]
name = "main"
base_url = "{url}"
model = "big"
egress = "allow"
concurrency = 2
timeout_s = 300  # the monotonic clock stands still while a device sleeps, but not for a process that is stopped

[connectivity]
probe_cap_s = 1
"""


@pytest.mark.sizes(short=None, full={"asleep_s": 15, "patience_s": 600}, long={"asleep_s": 120, "patience_s": 1200})
@pytest.mark.parametrize("jump", [*JUMPS, "asleep"])
def test_set_while_rows_wait_and_one_is_under_way(tmp_path, size, shown, jump):
    """the clock is set, or the device sleeps, while rows wait and one is being sent"""
    clock = WallClock(tmp_path / "clock")
    with cloud_in_thread() as cloud:
        loop = cloud._server.get_loop()
        release = asyncio.Event()
        cloud.default = gated(release, ok())
        daemon = DaemonProcess(tmp_path / "device", CONFIG.format(url=cloud.base_url))
        daemon.more_environment = clock.environment
        daemon.start()
        assert clock.asked, "the library was never asked: it stands beside the program, not under it"
        ids = [daemon.chat(f"unsure {n}", key=f"k{n}").json()["outrider"]["request_id"] for n in range(8)]
        asyncio.run_coroutine_threadsafe(cloud.received(1), loop).result(30)
        if jump == "asleep":
            os.kill(daemon.pid, signal.SIGSTOP)
            time.sleep(size["asleep_s"])
            os.kill(daemon.pid, signal.SIGCONT)
        else:
            clock.set(JUMPS[jump])
        time.sleep(1)
        with daemon.client(admin=True) as client:
            client.post("/v1/queue/drain").raise_for_status()
        ids += [daemon.chat(f"unsure later {n}", key=f"l{n}").json()["outrider"]["request_id"] for n in range(4)]
        kept = [daemon.request(rid)["escalation"]["state"] for rid in ids]
        loop.call_soon_threadsafe(release.set)
        records = drained(daemon, ids, 60)
        shown.did("clock", jump if jump != "asleep" else f"stopped for {size['asleep_s']} s")
        shown.none("rows expired or dead meanwhile", [state for state in kept if state not in {"pending", "leased"}])
        shown.none("lost", [rid for rid, record in records.items() if record["state"] != "resolved"])
        shown.none("sent more than once", len(cloud.chats) - len(ids))
        assert daemon.stop() == 0
