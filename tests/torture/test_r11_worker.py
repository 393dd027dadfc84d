"""R11: the worker is killed as the kernel does when memory runs out. The queue's process lives, the worker is back."""

import os
import random
import signal
import statistics
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from fakes.daemon_process import DaemonProcess

CONFIG = """
[engine]
crashes_to_quarantine = 100
crash_window_s = 1

[[targets]]
name = "main"
base_url = "http://127.0.0.1:9/v1"
model = "big"
egress = "allow"
"""


def children(pid):
    path = Path(f"/proc/{pid}/task/{pid}/children")
    found = [int(child) for child in path.read_text().split()]
    return [child for child in found if b"fake_worker" in Path(f"/proc/{child}/cmdline").read_bytes()]


def worker_of(pid, other_than=0):
    """Wait for a worker; return its pid and how long that took."""
    began = time.monotonic()
    while time.monotonic() - began < 30:
        for child in children(pid):
            if child != other_than:
                return child, time.monotonic() - began
        time.sleep(0.005)
    raise AssertionError("no worker came back")


@pytest.mark.sizes(short=None, full={"kills": 20, "patience_s": 300}, long={"kills": 100, "patience_s": 1200})
def test_killed_in_the_middle(tmp_path, size, shown):
    """SIGKILL of the worker while it decodes, as when memory runs out"""
    chance = random.Random(3)
    daemon = DaemonProcess(tmp_path / "device", CONFIG).start()
    daemon.chat("hello")
    outcomes, back, answered_s, unknown = Counter(), [], [], []
    for kill in range(size["kills"]):
        worker, _ = worker_of(daemon.pid)
        answers = []
        thread = threading.Thread(target=lambda n=kill, to=answers: to.append(daemon.chat(f"slow {n}")))
        thread.start()
        time.sleep(chance.uniform(0.05, 0.5))
        os.kill(worker, signal.SIGKILL)
        killed = time.monotonic()
        thread.join(60)
        (answer,) = answers
        decision = answer.json().get("outrider", {}).get("decision") or answer.json()["error"]["code"]
        outcomes[answer.status_code, decision] += 1
        if (answer.status_code, decision) not in {(200, "queued"), (202, "queued"), (200, "answered")}:
            unknown.append(answer.text)
        _, seconds = worker_of(daemon.pid, other_than=worker)
        back.append(seconds)
        while daemon.chat("hello").status_code != 200:
            time.sleep(0.02)
        answered_s.append(time.monotonic() - killed)
    shown.did("kills", size["kills"])
    shown.did("what the caller got (times)", ", ".join(f"{s} {d} ({n})" for (s, d), n in sorted(outcomes.items())))
    shown.none("callers without an answer or a place in the queue", unknown)
    shown.most("next answer after the kill, median", statistics.median(answered_s), 2, "s")
    shown.did("slowest", f"{max(answered_s):.1f} s")
    shown.holds("the daemon lives on", daemon.process.poll() is None)
    assert daemon.stop() == 0
