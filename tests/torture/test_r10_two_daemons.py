"""R10: two daemons on one data directory."""

import subprocess
import sys
import time

import pytest
from fakes.daemon_process import DaemonProcess


@pytest.mark.sizes(short=None, full={"starts": 20}, long={"starts": 50})
def test_the_second_refuses(tmp_path, size, shown):
    """a second daemon on the same data directory refuses at once and says who has it"""
    daemon = DaemonProcess(tmp_path / "device").start()
    wrong, times = [], []
    for _ in range(size["starts"]):
        began = time.monotonic()
        run = subprocess.run(
            [sys.executable, "-m", "agent", "serve"],
            env=daemon.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        times.append(time.monotonic() - began)
        if run.returncode != 75 or str(daemon.pid) not in run.stderr:
            wrong.append(run.stderr)
    shown.did("starts of a second daemon", size["starts"])
    shown.none("that were not refused with the number of the first", wrong)
    shown.most("refused after, median, with the start of Python", sorted(times)[len(times) // 2], 1.0, "s")
    shown.holds("the first one answers on", daemon.chat("hello").status_code == 200)
    assert daemon.stop() == 0
