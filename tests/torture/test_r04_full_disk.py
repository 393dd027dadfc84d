"""R4: the disk is full while the queue is drained.

Wanted: local answers go on, the answers of what is under way are stored (the ballast is given up for that), nothing
that was acknowledged is lost, and requests are accepted again once there is room.
"""

import asyncio
import subprocess
import time

import pytest
from fakes.cloud import cloud_in_thread, gated, ok
from fakes.daemon_process import DaemonProcess
from test_r01_kills import drained

CONFIG = """
[queue]
ballast_bytes = {ballast}

[[targets]]
name = "main"
base_url = "{url}"
model = "big"
egress = "allow"
concurrency = 2
"""
LONG = " and so on" * 300


@pytest.fixture
def small_disk(tmp_path):
    """Return a function that mounts a disk of so many bytes."""
    mounted = []

    def mount(size):
        place = tmp_path / "disk"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place]
        made = subprocess.run(command, capture_output=True, check=False)
        if made.returncode:
            pytest.skip(f"NO FULL DISK TESTED: nothing can be mounted here ({made.stderr.decode().strip()})")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.sizes(short={"patience_s": 60}, full={}, long={})
def test_while_draining(tmp_path, shown, small_disk):
    """a disk of 2 MiB fills up with requests while others are under way"""
    disk = small_disk(2 << 20)
    with cloud_in_thread() as cloud:
        loop = cloud._server.get_loop()
        release = asyncio.Event()
        cloud.default = gated(release, ok())
        daemon = DaemonProcess(tmp_path / "device")
        daemon.data = disk / "data"
        daemon.configure(CONFIG.format(ballast=512 << 10, url=cloud.base_url))
        daemon.start()
        queued, refused, drafts = {}, [], []
        for number in range(400):
            text = f"unsure {number}{LONG}"
            answer = daemon.chat(text, key=f"key {number}")
            if answer.status_code == 200:
                queued[answer.json()["outrider"]["request_id"]] = text
            else:
                refused.append((answer.status_code, answer.json()["error"]["code"]))
            if len(refused) >= 5:
                break
        for number in range(5):
            answer = daemon.chat(f"hello {number}")
            drafts.append(answer.status_code == 200 and answer.json()["outrider"]["decision"] == "answered")
        unsure = daemon.chat(f"unsure, and nowhere to put it{LONG}")
        loop.call_soon_threadsafe(release.set)
        records = drained(daemon, queued, 30)
        wrong = [rid for rid, text in queued.items() if records[rid]["cloud_answer"]["text"] != f"cloud: {text}"]
        subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
        until = time.monotonic() + 20
        while (again := daemon.chat("unsure again", key="again")).status_code != 200 and time.monotonic() < until:
            time.sleep(0.2)
        shown.did("rows acknowledged until the disk was full", len(queued))
        shown.none("refusals other than 507 disk_full", [one for one in refused if one != (507, "disk_full")])
        assert refused, "the disk was never full"
        shown.none("local answers that did not come meanwhile", drafts.count(False))
        said = unsure.json().get("outrider", {})
        honest = (said.get("decision"), said.get("reason")) == ("uncertain", "disk_full")
        shown.holds("a draft that cannot be queued says so", honest)
        lost = [rid for rid, record in records.items() if record["state"] != "resolved"]
        shown.none("acknowledged and lost", lost)
        shown.none("answers of the target that were lost or mixed up", wrong)
        shown.holds("accepts again once there is room, without a restart", again.status_code == 200)
        assert daemon.stop() == 0
