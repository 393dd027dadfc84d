"""R15: the queue is full. What goes for a new row is counted, told in the log, and seen by its owner."""

import re
from collections import Counter

import pytest
from fakes.daemon_process import DaemonProcess

CONFIG = """
[queue]
max_rows = {rows}
when_full = "{policy}"

[[targets]]
name = "main"
base_url = "http://127.0.0.1:9/v1"
model = "big"
egress = "allow"
"""
ROWS = 10


def dropped_by_metric(daemon):
    with daemon.client(admin=True) as client:
        text = client.get("/metrics").text
    return sum(int(float(n)) for n in re.findall(r"^outrider_queue_drops_total\{[^}]*\} (\S+)", text, re.MULTILINE))


@pytest.mark.sizes(short=None, full={"requests": 100}, long={"requests": 300, "patience_s": 400})
@pytest.mark.parametrize("policy", ["reject-new", "drop-oldest", "drop-lowest"])
def test_every_drop_is_seen(tmp_path, size, shown, policy):
    """more requests than the queue holds: what becomes of each, by policy"""
    daemon = DaemonProcess(tmp_path / "device", CONFIG.format(rows=ROWS, policy=policy)).start()
    ids, told = [], Counter()
    for number in range(size["requests"]):
        said = daemon.chat(f"unsure {number}").json()["outrider"]
        told[said["decision"], said["reason"] if said["decision"] == "uncertain" else ""] += 1
        ids.append((said["request_id"], said["decision"]))
    records = {rid: daemon.request(rid) for rid, _ in ids}
    waiting = [rid for rid, record in records.items() if record["state"] == "queued"]
    gone = [r for r in records.values() if r["escalation"] and r["escalation"]["reason"] == "dropped"]
    silent = [
        rid
        for rid, decision in ids
        if decision == "queued" and rid not in waiting and records[rid]["escalation"]["reason"] != "dropped"
    ]
    shown.did("policy", policy)
    shown.did("requests", size["requests"])
    shown.did("told at once that the queue is full", told["uncertain", "queue_full"])
    shown.did("dropped for others", len(gone))
    shown.holds("exactly the ceiling waits", len(waiting) == ROWS, len(waiting))
    shown.none("accepted rows that went without a word", silent)
    shown.holds("the metric counts each drop", dropped_by_metric(daemon) == len(gone), dropped_by_metric(daemon))
    shown.holds(
        "nothing else became of any", told.total() == len(waiting) + len(gone) + told["uncertain", "queue_full"]
    )
    assert daemon.stop() == 0
