"""R3: the disk fails (EIO) or is full (ENOSPC) at the first call, the second, and so on.

Wanted: nothing is acknowledged that is not on disk, each error is one of ours, and the same process goes on once the
disk does. A library under the program lets calls fail (tests/fakes/preload/faults.c).
"""

import errno
import json
import os
import subprocess
import sys
import time

import pytest
from fakes import faulty_storage
from fakes.daemon_process import DaemonProcess
from fakes.preload import Faults
from fakes.storage_lives import REPO


class FaultyStorage:
    """The process that goes down the road with each fault in turn."""

    def __init__(self, tmp_path):
        (tmp_path / "disk").mkdir()
        self.faults = Faults(tmp_path / "disk", tmp_path / "control")
        self.process = subprocess.Popen(
            [sys.executable, faulty_storage.__file__],
            cwd=REPO, env={**os.environ, **self.faults.environment},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def attempt(self, first, error, count):
        self.process.stdin.write(f"{first} {error} {count}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


CALLS = {"short": (1, 2, 3, 5, 8, 13, 21, 34, 55), "full": range(1, 201), "long": range(1, 401)}


@pytest.mark.sizes(short={}, full={"patience_s": 1200}, long={"patience_s": 2400})
@pytest.mark.parametrize(("error", "count"), [("EIO", "1"), ("ENOSPC", "1"), ("EIO", "forever"), ("ENOSPC", "forever")])
def test_each_call_in_turn(tmp_path, shown, profile, error, count):
    """the n-th write, sync or truncate of the storage process fails, once or until the disk is mended"""
    told = {}
    with FaultyStorage(tmp_path) as storage:
        for first in CALLS[profile]:
            told[first] = storage.attempt(first, error, count)
        calls = storage.faults["seen"]
    assert calls, "the library saw no call: it stands beside the program, not under it"
    hit = {first: answer for first, answer in told.items() if answer["failed"]}
    assert hit, "no call failed"
    shown.did("fault", f"{error}, {count if count == 'forever' else 'once'}")
    shown.did("calls that were made to fail, each in a run of its own", len(hit))
    shown.none("acknowledged and not on disk", [(f, a["lost"]) for f, a in told.items() if a["lost"]])
    shown.none("errors that are not ours", [(f, a["odd"]) for f, a in told.items() if a["odd"]])
    shown.none("runs that did not go on once the disk did", [f for f, a in told.items() if not a["recovered"]])
    damaged = [f for f, a in told.items() if a["check"] != "ok" or a["log"]]
    shown.none("databases or logs damaged", damaged)


@pytest.mark.sizes(short={}, full={}, long={})
@pytest.mark.parametrize(("error", "code", "status"), [("ENOSPC", "disk_full", 507), ("EIO", "storage_error", 503)])
def test_what_a_caller_is_told(tmp_path, shown, error, code, status):
    """what HTTP says while the disk fails, and that the daemon goes on without a restart"""
    daemon = DaemonProcess(tmp_path / "device")
    daemon.data.mkdir(mode=0o700)
    faults = Faults(daemon.data, tmp_path / "control")
    daemon.more_environment = faults.environment
    daemon.start()
    before = daemon.chat("unsure before").json()["outrider"]["request_id"]
    assert faults["seen"], "the library saw no call"
    faults.arm(1, error=getattr(errno, error), count=1 << 40)
    answers = [daemon.chat(f"unsure {number}", key=f"key {number}") for number in range(5)]
    local = daemon.chat("hello")
    alive = daemon.process.poll() is None
    faults.disarm()
    until = time.monotonic() + 30
    while (after := daemon.chat("unsure after")).status_code != 200 and time.monotonic() < until:
        time.sleep(0.1)
    shown.did("fault", error)
    wrong = [a.text for a in answers if (a.status_code, a.json()["error"]["code"]) != (status, code)]
    shown.none(f"answers other than {status} {code}", wrong)
    shown.holds(
        "a local answer that nobody asks for again",
        local.status_code == {507: 200, 503: 503}[status],
        local.status_code,
    )
    shown.holds("the daemon lives on", alive)
    shown.holds("and accepts again without a restart", after.status_code == 200)
    shown.holds("what it accepted before is there", daemon.request(before)["state"] == "queued")
    assert daemon.stop() == 0
