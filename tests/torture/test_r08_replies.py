"""R8: the target fails in every way there is. Each row ends as it should, and nothing is sent more often than planned.

What each code means is shown one by one in tests/unit/test_replies.py and tests/integration/test_dispatcher.py.
"""

import random
import threading
import time
from collections import Counter

import pytest
from fakes import cloud as fake
from fakes.cloud import cloud_in_thread, ok
from fakes.daemon_process import DaemonProcess
from test_r01_kills import drained

CONFIG = """
[queue]
max_attempts = 100

[[targets]]
name = "main"
base_url = "{url}"
model = "big"
egress = "allow"
concurrency = 4

[connectivity]
probe_cap_s = 1
"""
PASSING = {
    "429 in ms": lambda: fake.rate_limited(ms=50),
    "429 in s": lambda: fake.rate_limited(seconds=1),
    "429 with a date": lambda: fake.rate_limited(at_ms=time.time_ns() // 1_000_000 + 1000),
    "429 bare": fake.rate_limited,
    "503 with Retry-After": lambda: fake.rate_limited(seconds=1, code=503),
    **{str(code): (lambda code=code: fake.status(code)) for code in (408, 409, 500, 502, 503, 504, 529)},
    "cut mid-body": fake.cut_body,
    "cut before the reply": fake.cut_before_reply,
    "truncated JSON": lambda: fake.raw(200, b'{"id": "x", "choices": [{"mess'),
    "a page of a portal": fake.html,
    "302": lambda: fake.redirect("https://portal.example/"),
}
FATAL = {"400": 400, "413": 413, "422": 422}


@pytest.mark.sizes(short=None, full={"rows": 120, "patience_s": 600}, long={"rows": 500, "patience_s": 2400})
def test_every_kind_of_trouble_mixed(tmp_path, size, shown):
    """rows are sent while the target fails in every way, at random"""
    chance = random.Random(9)
    seen, lock = Counter(), threading.Lock()
    doomed = {f"unsure {n}" for n in range(0, size["rows"], 20)}

    async def troubled(exchange):
        text = exchange.received.last_user_text
        with lock:
            if text in doomed:
                kind = chance.choice([*FATAL])
            else:
                kind = "fine" if chance.random() < 0.4 else chance.choice([*PASSING])
            seen[kind] += 1
        act = ok() if kind == "fine" else fake.status(FATAL[kind]) if kind in FATAL else PASSING[kind]()
        await act(exchange)

    with cloud_in_thread() as cloud:
        cloud.default = troubled
        daemon = DaemonProcess(tmp_path / "device", CONFIG.format(url=cloud.base_url)).start()
        asked = {}
        for n in range(size["rows"]):
            asked[daemon.chat(f"unsure {n}", key=f"k{n}").json()["outrider"]["request_id"]] = f"unsure {n}"
        stop = threading.Event()
        hurry = threading.Thread(target=hasten, args=(daemon, stop))
        hurry.start()
        records = drained(daemon, asked, size["patience_s"] - 60)
        stop.set()
        hurry.join()
        ended = Counter(record["state"] for record in records.values())
        planned = seen.total()
        keys = {(chat.last_user_text, chat.headers["idempotency-key"]) for chat in cloud.chats}
        wrong = [
            rid
            for rid, text in asked.items()
            if (records[rid]["state"] == "resolved") == (text in doomed)
            or (text not in doomed and records[rid]["cloud_answer"]["text"] != f"cloud: {text}")
        ]
        shown.did("rows", size["rows"])
        shown.did("kinds of trouble, times", f"{len(seen) - 1}, {planned - seen['fine']}")
        shown.did("answered, refused for good", f"{ended['resolved']}, {ended['unresolved']}")
        shown.none("rows that ended as they should not, or with another's answer", wrong)
        shown.none("rows sent under two keys", len(keys) - size["rows"])
        shown.most("sends for each planned one", len(cloud.chats) / planned, 1.1)
        assert daemon.stop() == 0


def hasten(daemon, stop):
    """Do not wait for backoff: a person says `queue drain` again and again."""
    with daemon.client(admin=True) as client:
        while not stop.wait(0.3):
            client.post("/v1/queue/drain")


@pytest.mark.sizes(short=None, full={"rows": 30, "patience_s": 120}, long={"rows": 100, "patience_s": 240})
def test_r12_a_row_that_always_fails(tmp_path, size, shown):
    """R12: one row breaks every connection that carries it; it is given up, and the others flow"""

    async def poisoned(exchange):
        poison = "poison" in exchange.received.last_user_text
        await (fake.cut_before_reply() if poison else ok())(exchange)

    with cloud_in_thread() as cloud:
        cloud.default = poisoned
        config = CONFIG.format(url=cloud.base_url).replace("max_attempts = 100", "max_attempts = 3")
        daemon = DaemonProcess(tmp_path / "device", config).start()
        bad = daemon.chat("unsure poison", key="bad").json()["outrider"]["request_id"]
        good = [daemon.chat(f"unsure {n}", key=f"k{n}").json()["outrider"]["request_id"] for n in range(size["rows"])]
        stop = threading.Event()
        hurry = threading.Thread(target=hasten, args=(daemon, stop))
        hurry.start()
        records = drained(daemon, [bad, *good], 90)
        stop.set()
        hurry.join()
        sends = sum("poison" in chat.last_user_text for chat in cloud.chats)
        shown.holds("the row is dead, with its reason", records[bad]["escalation"]["state"] == "dead")
        shown.most("sends of it", sends, 3)
        shown.none("others that did not flow", [rid for rid in good if records[rid]["state"] != "resolved"])
        assert daemon.stop() == 0
