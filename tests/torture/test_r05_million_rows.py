"""R5: a million rows wait. Enqueuing, claiming, metrics and a start after an unclean stop stay quick."""

import asyncio
import statistics
import time
from pathlib import Path

import pytest
from fakes import storage_values as values
from fakes.daemon_process import DaemonProcess
from fakes.million_rows import fill

from agent.settings import QueueSettings, TargetSettings
from agent.types import EgressPolicy

URL = "http://127.0.0.1:9/v1"  # nobody answers there
CONFIG = f"""
[queue]
max_rows = 10000000
max_bytes = 100000000000

[[targets]]
name = "cloud"
base_url = "{URL}"
model = "big"
egress = "allow"
"""
TARGET = TargetSettings(name="cloud", base_url=URL, model="big", egress=EgressPolicy.ALLOW)
QUEUE = QueueSettings(max_rows=10_000_000, max_bytes=10**11)
ASKED = 300


def resident_mib(pid):
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def metrics_ms(daemon):
    with daemon.client(admin=True) as client:
        times = []
        for _ in range(30):
            began = time.perf_counter()
            client.get("/metrics").raise_for_status()
            times.append((time.perf_counter() - began) * 1000)
    return times


def p99(times):
    return statistics.quantiles(times, n=100)[98]


async def timed(data, now_ms):
    """Return the times in ms of accepting a request, of making its row, and of claiming one."""
    storage = await values.open_storage(data, QUEUE, values.KEEP, now_ms=now_ms)
    opens, settles, claims = [], [], []
    try:
        for number in range(ASKED):
            asked = values.request(f"one more {number}", now_ms=now_ms)
            began = time.perf_counter()
            await storage.journal.open(asked, now_ms=now_ms)
            opened = time.perf_counter()
            await storage.journal.settle(asked, values.generation(), values.UNSURE, values.queued(), now_ms=now_ms)
            settles.append((time.perf_counter() - opened) * 1000)
            opens.append((opened - began) * 1000)
        for _ in range(ASKED):
            began = time.perf_counter()
            assert await storage.outbox.claim("cloud", now_ms=now_ms + 10_000, lease_ms=60_000)
            claims.append((time.perf_counter() - began) * 1000)
    finally:
        await storage.close()
    return opens, settles, claims


@pytest.mark.sizes(
    short=None,
    full={"rows": 1_000_000, "patience_s": 900},
    long={"rows": 1_000_000, "patience_s": 900},
)
def test_with_a_million_rows(tmp_path, size, shown):
    """a million rows in the queue"""
    now_ms = time.time_ns() // 1_000_000
    empty = DaemonProcess(tmp_path / "empty", CONFIG).start()
    empty.chat("unsure")
    metrics_ms(empty)
    small_mib = resident_mib(empty.pid)
    assert empty.stop() == 0
    daemon = DaemonProcess(tmp_path / "device", CONFIG).start()
    assert daemon.stop() == 0
    began = time.monotonic()
    fill(daemon.data, size["rows"], target="cloud", fingerprint=TARGET.fingerprint, now_ms=now_ms)
    shown.did("rows", f"{size['rows']:,}, filled in {time.monotonic() - began:.0f} s")
    shown.did("database", f"{(daemon.data / 'outrider.db').stat().st_size / 2**20:,.0f} MiB")
    opens, settles, claims = asyncio.run(timed(daemon.data, now_ms))
    enqueues = [a + b for a, b in zip(opens, settles, strict=True)]
    shown.did("enqueue (two commits), median", f"{statistics.median(enqueues):.1f} ms")
    shown.most("enqueue, p99 of the slower of its commits", max(p99(opens), p99(settles)), 25, "ms")
    shown.most("enqueue, p99 of both together", p99(enqueues), 25, "ms")
    shown.did("claim, median", f"{statistics.median(claims):.1f} ms")
    shown.most("claim, p99", p99(claims), 25, "ms")
    daemon.start()
    daemon.chat("unsure")
    daemon.kill()
    began = time.monotonic()
    daemon.start()
    shown.most("ready after kill -9", time.monotonic() - began, 3, "s")
    assert daemon.chat("unsure").status_code == 200
    times = metrics_ms(daemon)
    shown.most("/metrics, median", statistics.median(times), 20, "ms")
    shown.did("/metrics, slowest of 30", f"{max(times):.1f} ms")
    shown.most("memory beside that with an empty queue", resident_mib(daemon.pid) - small_mib, 20, "MiB")
    assert daemon.stop() == 0
