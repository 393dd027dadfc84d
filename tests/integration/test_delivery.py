"""What is kept, dropped, held back, told and summed up of answers that come later."""

import asyncio
import base64
import contextlib
import json
import os
import stat
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random

import msgspec
import openai
import pytest
from fakes import storage_values as values
from fakes.api_server import served, target_at
from fakes.cloud import cloud_in_thread, ok, slow
from fakes.daemon_process import DaemonProcess
from fakes.storage_values import DAY, KEEP, NOW, QUEUE

from agent.delivery_settings import WebhookSettings, WhenFull
from agent.device import PowerState
from agent.errors import ConfigError, KeyProblem, QueueFull
from agent.escalation.thrift import Thrift
from agent.escalation.webhook import Webhook, check_url, load_secret, signature
from agent.settings import ConnectivitySettings, QueueSettings

# --- the ceiling ----------------------------------------------------------------------


async def queue_with(tmp_path, when_full, priorities, **limits):
    queue = QueueSettings(**{"ballast_bytes": 0, "max_rows": 3, "when_full": when_full, **limits})
    storage = await values.open_storage(values.prepared_dir(tmp_path), queue, KEEP, now_ms=NOW)
    ids = []
    for number, priority in enumerate(priorities):
        ids.append(await enqueue(storage, f"question {number}", now_ms=NOW + number))
        await storage.db.write(
            lambda connection, priority=priority, rid=ids[-1]: (
                connection.execute(
                    "UPDATE escalations SET priority = :priority WHERE request_id = :id",
                    {"priority": priority, "id": rid},
                ).rowcount
            )
        )
    return storage, ids


async def enqueue(storage, text, *, now_ms=NOW + 50):
    asked = values.request(text, now_ms=now_ms)
    await storage.journal.open(asked, now_ms=now_ms)
    await storage.journal.settle(asked, values.generation(), None, values.queued(), now_ms=now_ms)
    return asked.id


async def states(storage, ids):
    return [(await storage.journal.get(one)).state.value for one in ids]


async def test_reject_new_keeps_what_waits(tmp_path):
    storage, ids = await queue_with(tmp_path, WhenFull.REJECT_NEW, [0, 0, 0])
    with pytest.raises(QueueFull):
        await enqueue(storage, "one more")
    assert await states(storage, ids) == ["queued"] * 3
    await storage.close()


async def test_drop_oldest_tells_the_owner_of_the_oldest(tmp_path):
    storage, ids = await queue_with(tmp_path, WhenFull.DROP_OLDEST, [5, 0, 0])
    new = await enqueue(storage, "one more")
    assert await states(storage, [*ids, new]) == ["unresolved", "queued", "queued", "queued"]
    gone = await storage.journal.get(ids[0])
    assert (gone.escalation.state, gone.escalation.reason) == ("dead", "dropped")
    assert "drop-oldest" in gone.escalation.last_error
    # Its draft and its texts are still there, and a person may bring it back once there is room.
    assert gone.generation is not None
    await storage.outbox.cancel(ids[1], now_ms=NOW)
    await storage.outbox.retry_by_hand(ids[0], hold=lambda row: None, now_ms=NOW)
    assert await states(storage, ids[:1]) == ["queued"]
    await storage.close()


async def test_drop_oldest_leaves_what_is_being_sent(tmp_path):
    storage, ids = await queue_with(tmp_path, WhenFull.DROP_OLDEST, [0, 0, 0])
    claimed, _ = await storage.outbox.claim("cloud", now_ms=NOW + 10, lease_ms=1000)
    assert claimed.request_id == ids[0]
    await enqueue(storage, "one more")
    assert await states(storage, ids) == ["queued", "unresolved", "queued"]
    await storage.close()


@pytest.mark.parametrize(
    ("priorities", "expected"), [([1, -2, 0], ["queued", "unresolved", "queued"]), ([0, 0, 1], None)]
)
async def test_drop_lowest_goes_by_priority_and_never_for_its_equal(tmp_path, priorities, expected):
    storage, ids = await queue_with(tmp_path, WhenFull.DROP_LOWEST, priorities)
    if expected is None:
        with pytest.raises(QueueFull):
            await enqueue(storage, "one more")
        expected = ["queued"] * 3
    else:
        await enqueue(storage, "one more")
    assert await states(storage, ids) == expected
    await storage.close()


async def test_a_row_that_is_too_large_drops_nothing(tmp_path):
    storage, ids = await queue_with(tmp_path, WhenFull.DROP_OLDEST, [0, 0], max_bytes=4096)
    with pytest.raises(QueueFull):
        await enqueue(storage, "x" * 5000)
    assert await states(storage, ids) == ["queued"] * 2
    await storage.close()


async def test_urgent_rows_alone_may_be_claimed(tmp_path):
    storage, ids = await queue_with(tmp_path, WhenFull.REJECT_NEW, [0, 1])
    claimed, _ = await storage.outbox.claim("cloud", now_ms=NOW + 10, lease_ms=1000, least=1)
    assert claimed.request_id == ids[1]
    assert await storage.outbox.claim("cloud", now_ms=NOW + 10, lease_ms=1000, least=1) is None
    assert await storage.outbox.next_available_ms("cloud", NOW + 10, least=1) is None
    assert await storage.outbox.next_available_ms("cloud", NOW + 10) == NOW + 10
    await storage.close()


# --- battery and line -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "power", "reason"),
    [
        ({}, PowerState(battery_percent=3, on_battery=True), ""),
        ({"hold_below_battery_percent": 30}, PowerState(battery_percent=20, on_battery=True), "the battery is at 20 %"),
        ({"hold_below_battery_percent": 30}, PowerState(battery_percent=20, on_battery=False), ""),
        ({"hold_on_metered": True, "metered": "yes"}, PowerState(), "the line is metered"),
        ({"hold_on_metered": True, "metered": "no"}, PowerState(), ""),
        ({"metered": "yes"}, PowerState(), ""),
    ],
)
async def test_when_rows_wait(settings, power, reason):
    assert await Thrift(msgspec.convert(settings, ConnectivitySettings), lambda: power).reason() == reason


@pytest.mark.parametrize(("answer", "metered"), [("u 1", True), ("u 3", True), ("u 4", False), ("oh", False)])
async def test_networkmanager_is_asked(tmp_path, monkeypatch, answer, metered):
    program = tmp_path / "busctl"
    program.write_text(f"#!/bin/sh\necho '{answer}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = await Thrift(ConnectivitySettings(hold_on_metered=True), PowerState).reason()
    assert bool(found) is metered


# --- the webhook ----------------------------------------------------------------------


class Receiver:
    """Takes events, or answers with scripted statuses first."""

    def __init__(self):
        self.got, self.statuses = [], []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.got.append((dict(self.headers), body))
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 204)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def wait(self, count):
        until = time.monotonic() + 30
        while len(self.got) < count:
            assert time.monotonic() < until, self.got
            time.sleep(0.01)
        return self.got


@pytest.fixture
def receiver():
    found = Receiver()
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_a_late_answer_is_told_once_across_a_kill(tmp_path, receiver):
    with cloud_in_thread() as cloud:
        cloud.default = slow(0.05, ok())
        daemon = DaemonProcess(
            tmp_path,
            f'[webhook]\nurl = "{receiver.url}"\n[[targets]]\nname = "main"\nbase_url = "{cloud.base_url}"\n'
            'model = "big"\negress = "allow"\n',
        ).start()
        try:
            receiver.statuses = [500]
            rid = daemon.chat("unsure secret words").json()["outrider"]["request_id"]
            receiver.wait(1)
            daemon.kill()
            daemon.start()
            sure = daemon.chat("hello")
            assert sure.status_code == 200
            daemon_got = receiver.wait(2)
            secret = (daemon.data / "webhook-secret").read_text().strip()
            assert stat.S_IMODE((daemon.data / "webhook-secret").stat().st_mode) == 0o600
        finally:
            daemon.stop()
    client = openai.OpenAI(api_key="x", webhook_secret=secret)
    events = [client.webhooks.unwrap(body, headers) for headers, body in daemon_got]
    assert {(event.type, event.data.id) for event in events} == {("response.completed", f"resp_{rid}")}
    # Sent again, it is the same event.
    assert len({headers["webhook-id"] for headers, _ in daemon_got}) == 1
    assert not any(b"secret words" in body for _, body in daemon_got)
    assert len(receiver.got) == 2


async def test_what_is_not_taken_comes_again_and_ends_some_day(tmp_path, receiver):
    storage = await values.open_storage(values.prepared_dir(tmp_path), QUEUE, KEEP, now_ms=NOW)
    moment = [NOW + 10]
    hook = Webhook(
        WebhookSettings(url=receiver.url), b"k" * 32, storage.webhooks, now_ms=lambda: moment[0], random=Random(1),
        may_leave=lambda: False,
    )  # fmt: skip
    await enqueue(storage, "before it is wanted", now_ms=NOW)
    await storage.outbox.claim("cloud", now_ms=NOW, lease_ms=1)
    await storage.webhooks.want(wanted=True)
    rid = await enqueue(storage, "unsure", now_ms=NOW)
    await storage.outbox.cancel(rid, now_ms=NOW + 5)
    receiver.statuses = [503, 404]
    async with hook_client() as client:
        for _ in range(3):
            await hook._deliver_due(client)
            moment[0] += 1000 * 1000  # longer than any backoff
        assert await storage.webhooks.counts() == {"pending": 0, "delivered": 1, "dead": 0}
        assert [json.loads(body)["type"] for _, body in receiver.got] == ["response.cancelled"] * 3
        assert len({body for _, body in receiver.got}) == 1
        rid = await enqueue(storage, "another", now_ms=NOW)
        await storage.outbox.cancel(rid, now_ms=moment[0])
        receiver.statuses = [500]
        moment[0] += 4 * DAY
        await hook._deliver_due(client)
    assert (await storage.webhooks.counts())["dead"] == 1
    await storage.webhooks.want(wanted=False)
    await storage.close()


def hook_client():
    import httpx2

    return httpx2.AsyncClient(trust_env=False, verify=False)


def test_the_signature_is_that_of_the_standard():
    # The example of the specification: github.com/standard-webhooks, "Signature scheme".
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    assert signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == (
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


@pytest.mark.parametrize(
    "url", ["http://example.test/x", "ftp://localhost/", "https://ann:pw@example.test/", "http://[x"]
)
def test_urls_that_must_not_be_used(url):
    with pytest.raises(ConfigError, match=r"webhook\.url"):
        check_url(WebhookSettings(url=url))


def test_a_secret_that_others_can_read_is_refused(tmp_path):
    assert load_secret(WebhookSettings(), tmp_path) == load_secret(WebhookSettings(), tmp_path)
    (tmp_path / "webhook-secret").chmod(0o644)
    with pytest.raises(KeyProblem, match="can be read by others"):
        load_secret(WebhookSettings(), tmp_path)


async def test_deliveries_outlive_a_fault(tmp_path, receiver, monkeypatch):
    monkeypatch.setattr("agent.escalation.webhook.LOOK_EVERY_S", 0)
    storage = await values.open_storage(values.prepared_dir(tmp_path), QUEUE, KEEP, now_ms=NOW)
    hook = Webhook(
        WebhookSettings(url=receiver.url), b"k" * 32, storage.webhooks, now_ms=lambda: NOW + 9, random=Random(1),
        may_leave=lambda: False,
    )  # fmt: skip
    await storage.webhooks.want(wanted=True)
    await storage.outbox.cancel(await enqueue(storage, "unsure", now_ms=NOW), now_ms=NOW + 5)
    due, faults = storage.webhooks.due, iter([RuntimeError("a bug")])

    async def sometimes(*arguments):
        if fault := next(faults, None):
            raise fault
        return await due(*arguments)

    monkeypatch.setattr(storage.webhooks, "due", sometimes)
    running = asyncio.create_task(hook.run())
    told = asyncio.create_task(asyncio.to_thread(receiver.wait, 1))
    await asyncio.wait((running, told), return_when=asyncio.FIRST_COMPLETED)
    assert not running.done()
    await told
    running.cancel()
    await asyncio.wait((running,))
    await storage.close()


async def test_off_this_device_only_with_leave_and_logged(tmp_path):
    storage = await values.open_storage(values.prepared_dir(tmp_path), QUEUE, KEEP, now_ms=NOW)
    may = [False]
    hook = Webhook(
        WebhookSettings(url="https://example.test/"), b"k" * 32, storage.webhooks, now_ms=lambda: NOW + 9,
        random=Random(1), may_leave=lambda: may[0],
    )  # fmt: skip
    await storage.webhooks.want(wanted=True)
    rid = await enqueue(storage, "unsure", now_ms=NOW)
    await storage.outbox.cancel(rid, now_ms=NOW + 5)
    tried = []

    class Reply:
        status_code, headers = 200, {}

    class Client:
        @contextlib.asynccontextmanager
        async def stream(self, method, url, *, content, headers):
            tried.append(content)
            yield Reply()

    await hook._deliver_due(Client())
    assert tried == []
    may[0] = True
    await hook._deliver_due(Client())
    (logged,) = await storage.egress_log.list(0, 10)
    assert (logged.target, logged.request_id, logged.bytes) == ("webhook", f"resp_{rid}", len(tried[0]))
    assert await storage.egress_log.verify() is None
    await storage.close()


# --- the digest -----------------------------------------------------------------------


def test_the_digest_says_what_changed(tmp_path):
    with cloud_in_thread() as cloud, served(tmp_path / "data", targets=(target_at(cloud.base_url),)) as api:
        rid = api.chat("unsure is the capital").json()["outrider"]["request_id"]
        other = api.chat("no draft here", outrider={"route_mode": "cloud_only"}).json()["outrider"]["request_id"]
        until = time.monotonic() + 20
        while len((found := api.get("/v1/digest").json())["data"]) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        one, new = found["data"]
        assert (one["request_id"], one["kind"], one["question"]) == (rid, "changed", "unsure is the capital")
        assert one["marked"] == "[-echo-]{+cloud+}: unsure is the capital"
        assert (new["request_id"], new["kind"], new["marked"]) == (other, "new", "{+cloud: no draft here+}")
        assert found["counts"] == {"changed": 1, "new": 1}
        assert api.post("/v1/digest/seen", {"ids": [rid, other]}).json() == {"seen": 2}
        assert api.get("/v1/digest").json()["data"] == []
        assert len(api.get("/v1/digest?since_ms=0").json()["data"]) == 2
