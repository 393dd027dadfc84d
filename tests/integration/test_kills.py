"""kill -9 of the whole daemon at random moments: enqueue, claim, send, record.

Wanted: nothing acknowledged is lost, one answer to each owner, and a send that is repeated
carries the same Idempotency-Key.
"""

import random
import threading
import time
from collections import Counter

import httpx2
import pytest
from fakes.cloud import cloud_in_thread, ok, slow
from fakes.daemon_process import DaemonProcess

KILLS = 50
PRODUCERS = 3
CONCURRENCY = 2


def config(cloud):
    return f"""
[[targets]]
name = "main"
base_url = "{cloud.base_url}"
model = "big"
egress = "allow"
concurrency = {CONCURRENCY}

[connectivity]
probe_cap_s = 1
"""


class Producer(threading.Thread):
    """Asks until it is told to stop; repeats a question with the same key until it is answered."""

    def __init__(self, daemon, number, stop):
        super().__init__(daemon=True)
        self.daemon_process, self.number, self.stop = daemon, number, stop
        self.acknowledged = {}  # key -> request id

    def run(self):
        count = 0
        while not self.stop.is_set():
            key = f"{self.number}-{count}"
            if self.ask(key):
                count += 1

    def ask(self, key):
        while not self.stop.is_set():
            try:
                response = self.daemon_process.chat(f"unsure {key}", key=key)
            except (httpx2.TransportError, OSError, ValueError):
                time.sleep(0.02)
                continue
            if response.status_code in {200, 202}:  # 202: cut short, and queued at the next start
                assert response.json()["outrider"]["decision"] == "queued"
                self.acknowledged[key] = response.json()["outrider"]["request_id"]
                return True
            if response.status_code in {409, 503}:  # still running, or stopping
                time.sleep(0.02)
                continue
            raise AssertionError(f"{response.status_code}: {response.text}")
        return False


@pytest.mark.torture
@pytest.mark.timeout(400)
def test_fifty_kills_lose_nothing_and_answer_once(tmp_path):
    chance = random.Random(20261122)
    with cloud_in_thread() as cloud:
        cloud.default = slow(0.01, ok())
        daemon = DaemonProcess(tmp_path, config(cloud)).start()
        stop = threading.Event()
        producers = [Producer(daemon, n, stop) for n in range(PRODUCERS)]
        for producer in producers:
            producer.start()
        for _ in range(KILLS):
            time.sleep(chance.uniform(0.0, 0.5))
            daemon.kill()
            daemon.start()
        time.sleep(0.5)
        stop.set()
        for producer in producers:
            producer.join(60)
        acknowledged = {key: rid for producer in producers for key, rid in producer.acknowledged.items()}
        assert len(acknowledged) > KILLS, "too few requests went through to show anything"
        states = drained(daemon, acknowledged.values())
        assert Counter(state["state"] for state in states.values()) == {"resolved": len(acknowledged)}
        for key, request_id in acknowledged.items():
            assert states[request_id]["cloud_answer"]["text"] == f"cloud: unsure {key}"
        sends = Counter((chat.headers["idempotency-key"], chat.last_user_text) for chat in cloud.chats)
        by_key = {}
        for key, text in sends:
            assert by_key.setdefault(key, text) == text, "one key, two questions"
        by_text = Counter(text for _, text in sends)
        assert max(by_text.values()) == 1, "one question was sent under two keys"
        extra = sum(sends.values()) - len(sends)
        assert extra <= KILLS * CONCURRENCY
        print(f"\n{len(acknowledged)} acknowledged, {KILLS} kills, {sum(sends.values())} sends, {extra} repeated")
        assert daemon.stop() == 0


def drained(daemon, request_ids):
    waiting, done = set(request_ids), {}
    until = time.monotonic() + 120
    while waiting and time.monotonic() < until:
        for request_id in list(waiting):
            record = daemon.request(request_id)
            if record["state"] not in {"running", "queued"}:
                done[request_id] = record
                waiting.discard(request_id)
        time.sleep(0.2)
    assert not waiting, f"{len(waiting)} requests never came back, e.g. {daemon.request(waiting.pop())}"
    return done
