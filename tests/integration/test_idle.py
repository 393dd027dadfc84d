"""Nobody asks anything: the daemon sleeps."""

import sys
import time
from pathlib import Path

import psutil
import pytest
from fakes.daemon_process import DaemonProcess

WINDOW_S = 5


def wakes(pids):
    """How often all their threads went to sleep of their own accord."""
    statuses = [path.read_text() for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return sum(
        int(line.split()[1])
        for status in statuses
        for line in status.splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )


@pytest.mark.skipif(sys.platform != "linux", reason="NO WAKE-UPS COUNTED: there is no /proc")
def test_at_rest_it_wakes_at_most_once_a_second(tmp_path):
    daemon = DaemonProcess(tmp_path).start()
    assert daemon.chat("hello").status_code == 200
    time.sleep(2)  # what follows an answer, and the start
    pids = [daemon.pid, *(child.pid for child in psutil.Process(daemon.pid).children(recursive=True))]
    before = wakes(pids)
    time.sleep(WINDOW_S)
    assert wakes(pids) - before <= WINDOW_S
    assert daemon.stop() == 0
