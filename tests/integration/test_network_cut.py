"""The cable is pulled and plugged in again. Local answers go on, the queue drains on return."""

import asyncio
import time

import pytest
import trustme
from fakes import namespaces
from fakes.daemon_process import DaemonProcess
from fakes.far_cloud import tls_cloud

CONFIG = """
[[targets]]
name = "main"
base_url = "https://{host}:8443/v1"
model = "big"
egress = "allow"
ca_file = "{ca}"

[connectivity]
connect_timeout_s = 1
probe_cap_s = {cap}
"""
why_not = namespaces.available()
in_namespaces = pytest.mark.skipif(bool(why_not), reason=f"NO CLOSED NETWORK TESTED: {why_not}")


def queue(daemon):
    with daemon.client(admin=True) as client:
        return client.get("/v1/queue").raise_for_status().json()


def settled(daemon, request_ids):
    until = time.monotonic() + 90
    while time.monotonic() < until:
        records = [daemon.request(request_id) for request_id in request_ids]
        if all(record["state"] == "resolved" for record in records):
            return records
        time.sleep(0.05)
    raise AssertionError([record["state"] for record in records])


@in_namespaces
@pytest.mark.parametrize(("cut", "cap"), [("own link", 600), ("far link", 2)])
def test_the_cable_is_pulled_and_plugged_in_again(tmp_path, cut, cap):
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with (
        namespaces.closed_network() as (device, far),
        tls_cloud(far, namespaces.TARGET_ADDRESS, ca) as cloud,
    ):
        config = CONFIG.format(host=namespaces.TARGET_ADDRESS, ca=tmp_path / "ca.pem", cap=cap)
        daemon = DaemonProcess(tmp_path / "device", config, command_prefix=device.prefix)
        device.call(daemon.start)
        first = device.call(daemon.chat, "unsure zero").json()["outrider"]["request_id"]
        device.call(settled, daemon, [first])

        # `far` runs the target on its only thread; the link is changed from outside.
        cable = device if cut == "own link" else far
        cable.set_link("down")
        sent_before = len(cloud.chats)
        waiting = []
        for number in range(5):
            answer = device.call(daemon.chat, f"hello {number}").json()
            assert answer["outrider"]["decision"] == "answered"
            answer = device.call(daemon.chat, f"unsure {number}").json()
            assert answer["outrider"]["decision"] == "queued"
            waiting.append(answer["outrider"]["request_id"])
            time.sleep(0.5)
        for request_id in waiting:
            record = device.call(daemon.request, request_id)
            assert record["state"] == "queued"
            assert record["escalation"]["attempts"] == 0, "offline must not spend an attempt"
        assert len(cloud.chats) == sent_before

        cable.set_link("up")
        began = time.monotonic()
        device.call(settled, daemon, waiting)
        print(f"\n{cut}: drained {time.monotonic() - began:.1f} s after its return")
        assert len({chat.headers["idempotency-key"] for chat in cloud.chats}) == 6
        assert device.call(daemon.stop) == 0


def test_a_target_that_goes_away_and_comes_back_on_loopback(tmp_path):
    """The same road where namespaces cannot be had: the target's port closes and opens again."""
    from fakes.cloud import cloud_in_thread

    with cloud_in_thread() as cloud:
        toml = CONFIG.format(host="x", ca="", cap=1).replace("https://x:8443/v1", cloud.base_url)
        daemon = DaemonProcess(tmp_path / "device", toml).start()
        loop = cloud._server.get_loop()
        asyncio.run_coroutine_threadsafe(cloud.down(), loop).result()
        waiting = [daemon.chat(f"unsure {n}").json()["outrider"]["request_id"] for n in range(5)]
        assert daemon.chat("hello").json()["outrider"]["decision"] == "answered"
        time.sleep(1)
        assert {daemon.request(r)["escalation"]["attempts"] for r in waiting} == {0}
        asyncio.run_coroutine_threadsafe(cloud.up(), loop).result()
        settled(daemon, waiting)
        assert daemon.stop() == 0
