"""R16: many requests for a long time. Memory, files and the write-ahead log do not grow."""

import itertools
import statistics
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from fakes.cloud import cloud_in_thread
from fakes.daemon_process import DaemonProcess
from test_r05_million_rows import resident_mib

CONFIG = """
[[targets]]
name = "main"
base_url = "{url}"
model = "big"
egress = "allow"
concurrency = 4

[retention]
answered_s = 60
rows_s = 60
"""
CLIENTS = 3
# What fills once, and has a bound: the page cache of the database (8 MB, full after some 3,000 requests), and the memory
# that the largest clean-up needs and the allocator may keep. The first of usual size comes 120 s after the start: rows
# live 60 s, and half a minute passes between two.
WARM, WARM_S = 5000, 150


def soak(daemon, until, told, kinds):
    with daemon.client() as client:
        for number in itertools.count():
            if time.monotonic() > until:
                return
            text = ("hello {}", "unsure {}", "hello again {}", "crashless {}".replace("crash", "flaw"))[number % 4]
            body = {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": text.format(number)}]}
            answer = client.post("/v1/chat/completions", json=body)
            told[answer.status_code] += 1
            kinds[answer.json().get("outrider", {}).get("decision")] += 1


def slope_per_10_min(samples):
    """Return the slope of a straight line through (second, value), for 600 seconds."""
    times, figures = zip(*samples, strict=True)
    return statistics.linear_regression(times, figures).slope * 600


@pytest.mark.sizes(
    short=None,
    full={"seconds": 600, "patience_s": 900},
    long={"seconds": 1800, "patience_s": 2400},
)
def test_soak(tmp_path, size, shown):
    """requests through the whole daemon and its target for a long time"""
    with cloud_in_thread() as cloud:
        daemon = DaemonProcess(tmp_path / "device", CONFIG.format(url=cloud.base_url)).start()
        began = time.monotonic()
        told, kinds, samples, wal = Counter(), Counter(), [], 0
        clients = [
            threading.Thread(target=soak, args=(daemon, began + size["seconds"], told, kinds)) for _ in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        log = daemon.data / "outrider.db-wal"
        while time.monotonic() < began + size["seconds"]:
            time.sleep(2)
            files = len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))
            samples.append((time.monotonic() - began, resident_mib(daemon.pid), files, told.total()))
            wal = max(wal, log.stat().st_size if log.exists() else 0)
            cloud.requests.clear()
        for client in clients:
            client.join()
        warm = [sample for sample in samples if sample[3] > WARM and sample[0] > WARM_S]
        assert len(warm) > 30, "too few requests to say anything of the time after warming up"
        memory = slope_per_10_min([(at, mib) for at, mib, *_ in warm])
        shown.did("requests", f"{told.total():,} in {size['seconds']} s")
        shown.did("answered here, queued", f"{kinds['answered']:,}, {kinds['queued']:,}")
        shown.none("answers other than 200", told.total() - told[200])
        shown.did(
            "memory at first, warm, at the end",
            ", ".join(f"{one[1]:.1f} MiB" for one in (samples[0], warm[0], warm[-1])),
        )
        shown.most("memory, slope in 10 minutes", memory, 1, "MiB")
        third = len(warm) // 3
        files = [statistics.median(s[2] for s in part) for part in (warm[:third], warm[-third:])]
        shown.most("open files, last third against first", files[1] - files[0], 2)
        shown.most("write-ahead log at most", wal / 2**20, 64, "MiB")
        assert daemon.stop() == 0
