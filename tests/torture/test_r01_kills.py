"""R1: kill -9 at random moments, of the whole daemon and of a process that is all storage.

Wanted: nothing acknowledged is lost, one answer to each owner, and a send that is repeated carries the same
Idempotency-Key.
"""

import asyncio
import random
import threading
import time
from collections import Counter

import httpx2
import pytest
from fakes import storage_values as values
from fakes.cloud import cloud_in_thread, ok, slow
from fakes.daemon_process import DaemonProcess
from fakes.storage_lives import SENDERS, Lives
from fakes.storage_values import NOW

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


def quick_check(data):
    connection = values.raw_connection(data)
    try:
        return connection.execute("PRAGMA quick_check").fetchone()[0]
    finally:
        connection.close()


@pytest.mark.sizes(
    short={"kills": 5, "least": 1},
    full={"kills": 200, "least": 200, "patience_s": 1500},
    long={"kills": 1000, "least": 1000, "patience_s": 7200},
)
def test_the_whole_daemon(tmp_path, size, shown):
    """kill -9 of the whole daemon while requests are accepted, claimed, sent and recorded"""
    kills, chance = size["kills"], random.Random(20261122)
    damaged = []
    with cloud_in_thread() as cloud:
        cloud.default = slow(0.01, ok())
        daemon = DaemonProcess(tmp_path, config(cloud)).start()
        stop = threading.Event()
        producers = [Producer(daemon, n, stop) for n in range(PRODUCERS)]
        for producer in producers:
            producer.start()
        for kill in range(kills):
            time.sleep(chance.uniform(0.0, 0.5))
            daemon.kill()
            if (said := quick_check(daemon.data)) != "ok":
                damaged.append((kill, said))
            daemon.start()
        time.sleep(0.5)
        stop.set()
        for producer in producers:
            producer.join(60)
        acknowledged = {key: rid for producer in producers for key, rid in producer.acknowledged.items()}
        assert len(acknowledged) > size["least"], "too few requests went through to show anything"
        records = drained(daemon, acknowledged.values())
        shown.did("kills", kills)
        shown.did("requests acknowledged", len(acknowledged))
        shown.none("acknowledged and lost", [rid for rid, record in records.items() if record["state"] != "resolved"])
        wrong = [k for k, rid in acknowledged.items() if records[rid]["cloud_answer"]["text"] != f"cloud: unsure {k}"]
        shown.none("answers that are not the owner's own", wrong)
        sends = Counter((chat.headers["idempotency-key"], chat.last_user_text) for chat in cloud.chats)
        shown.none("keys used for two questions", repeated(key for key, _ in sends))
        shown.none("questions sent under two keys", repeated(text for _, text in sends))
        shown.did("sends", sum(sends.values()))
        shown.most("sends repeated, same key", sum(sends.values()) - len(sends), kills * CONCURRENCY)
        shown.none("databases damaged (quick_check after each kill)", damaged)
        assert daemon.stop() == 0


def repeated(things):
    return [thing for thing, count in Counter(things).items() if count > 1]


def drained(daemon, request_ids, patience_s=120):
    """Wait until each of them has ended; return the records by id."""
    waiting, done = set(request_ids), {}
    until = time.monotonic() + patience_s
    with daemon.client() as client:
        while waiting and time.monotonic() < until:
            for request_id in list(waiting):
                record = client.get(f"/v1/requests/{request_id}").raise_for_status().json()
                if record["state"] not in {"running", "queued"}:
                    done[request_id] = record
                    waiting.discard(request_id)
            time.sleep(0.2)
    assert not waiting, f"{len(waiting)} requests never came back, e.g. {daemon.request(waiting.pop())}"
    return done


class Said:
    """What the lives of one database were acknowledged."""

    def __init__(self):
        self.opened, self.queued, self.resolved, self.left = set(), set(), set(), []

    def hear(self, lines):
        for word, some_id in lines:
            match word:
                case "opened" | "queued" | "resolved":
                    getattr(self, word).add(some_id)
                case "left":
                    self.left.append(some_id)


class Found:
    """What a database holds when it is opened after a life."""

    @classmethod
    async def look(cls, data, now_ms):
        self = cls()
        storage = await values.open_storage(data, values.QUEUE, values.KEEP, now_ms=now_ms)
        try:
            listed = await storage.outbox.list(limit=-1)
            self.records = {row.request_id: await storage.journal.get(row.request_id) for row in listed}
            self.running = {request.id for request, _ in await storage.journal.running(100_000)}
            self.logged = await storage.egress_log.list(limit=1_000_000)
            self.broken_log = await storage.egress_log.verify()
            self.check = await storage.db.read(lambda c: c.execute("PRAGMA quick_check").fetchone()[0])
        finally:
            await storage.close()
        return self

    def lost(self, said):
        """Return what was acknowledged and is not there as it should be."""
        there = self.records.keys() | self.running
        late = {rid for rid, record in self.records.items() if record.state == "resolved"}
        gone = [("opened", rid) for rid in said.opened - there]
        gone += [("queued", rid) for rid in said.queued - self.records.keys()]
        gone += [("resolved", rid) for rid in said.resolved - late]
        gone += [("text", rid) for rid in late if self.records[rid].cloud_answer.text != f"late {rid}"]
        return gone

    def unlogged(self, said):
        """Return sends that the log of what left does not know."""
        sent, left = Counter(row.escalation_id for row in self.logged), Counter(said.left)
        return [row for row in left if sent[row] < left[row]]

    def crooked(self):
        """Return requests and rows whose states do not belong together, or whose answers were counted twice."""
        pairs = {("queued", "pending"), ("resolved", "succeeded"), ("unresolved", "dead")}
        odd = [rid for rid, r in self.records.items() if (r.state, r.escalation.state) not in pairs]
        successes = Counter(row.request_id for row in self.logged if row.outcome == "succeeded")
        resolved = {rid for rid, record in self.records.items() if record.state == "resolved"}
        return odd + [rid for rid, count in successes.items() if count > 1] + list(resolved ^ successes.keys())


@pytest.mark.sizes(
    short={"kills": 15, "least": 1},  # on a slow machine few lives get as far as a row
    full={"kills": 800, "least": 800, "patience_s": 1200},
    long={"kills": 4000, "least": 4000, "patience_s": 3600},
)
def test_the_storage_process(tmp_path, size, shown):
    """kill -9 of a process that opens, settles, claims, begins to send and records as fast as it can"""
    chance = random.Random(20_24)
    kills, per_database = size["kills"], 50
    total = Counter()
    lost, crooked, unlogged, damaged = [], [], [], []
    with Lives() as lives:
        for first in range(0, kills, per_database):
            data, said = values.prepared_dir(tmp_path), Said()
            here = min(per_database, kills - first)
            for kill in range(here):
                after = chance.uniform(0.005, 0.15)
                said.hear(lives.lead("queue", data, tmp_path / "acks", now_ms=NOW + kill, kill_after_s=after))
            found = asyncio.run(Found.look(data, NOW + here))
            lost += found.lost(said)
            crooked += found.crooked()
            unlogged += found.unlogged(said)
            damaged += [found.check] if found.check != "ok" else []
            damaged += [found.broken_log] if found.broken_log else []
            total.update(queued=len(said.queued), resolved=len(said.resolved))
            total.update(unknown=len([row for row in found.logged if row.outcome == "unknown"]))
    assert total["queued"] > size["least"], "too few rows to show anything"
    assert total["resolved"] > 0
    shown.did("kills", kills)
    shown.did("rows queued, of these answered", f"{total['queued']}, {total['resolved']}")
    shown.none("acknowledged and lost", lost)
    shown.none("rows and requests at odds, or answered twice", crooked)
    shown.none("sends that the log does not know", unlogged)
    shown.most("sends whose end nobody saw", total["unknown"], kills * SENDERS)
    shown.none("databases or logs damaged", damaged)


@pytest.mark.model
@pytest.mark.sizes(short=None, full={"kills": 5, "patience_s": 600}, long={"kills": 20, "patience_s": 1800})
def test_with_the_real_engine(tmp_path, size, shown):
    """kill -9 of the whole daemon with the real engine and real weights while it answers"""
    chance = random.Random(4)
    sure_threshold = "\n[confidence]\nthreshold = 1.0\n"  # every answer is unsure: all wait for the target
    with cloud_in_thread() as cloud:
        toml = config(cloud) + sure_threshold + "\n[engine]\nthreads = 1\n"
        daemon = DaemonProcess(tmp_path, toml, real=True).start()
        stop = threading.Event()
        producers = [Producer(daemon, n, stop) for n in range(2)]
        for producer in producers:
            producer.start()
        for _ in range(size["kills"]):
            time.sleep(chance.uniform(2.0, 6.0))
            daemon.kill()
            daemon.start()
        time.sleep(8)
        stop.set()
        for producer in producers:
            producer.join(60)
        acknowledged = {key: rid for producer in producers for key, rid in producer.acknowledged.items()}
        records = drained(daemon, acknowledged.values())
        drafts = [record for record in records.values() if (record.get("generation") or {}).get("text")]
        shown.did("kills", size["kills"])
        shown.did("requests acknowledged, of these with a draft of the model", f"{len(acknowledged)}, {len(drafts)}")
        assert acknowledged, "nothing went through"
        shown.none("acknowledged and lost", [rid for rid, record in records.items() if record["state"] != "resolved"])
        wrong = [k for k, rid in acknowledged.items() if records[rid]["cloud_answer"]["text"] != f"cloud: unsure {k}"]
        shown.none("answers that are not the owner's own", wrong)
        assert daemon.stop() == 0
