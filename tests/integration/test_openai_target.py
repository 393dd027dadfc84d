"""The outcome table over real HTTP: each row, and what the network can do besides."""

import asyncio
import socket
import threading

import pytest
from fakes import cloud as fake
from fakes.cloud import Cloud
from fakes.escalation_values import record, row
from fakes.target_calls import NOW, probe, send, target_for

from agent.escalation.resolver import MOST_LOOKUPS
from agent.escalation.target import Blocked, Delivered, Held, Offline, Online, RateLimited, Rejected, Retry
from agent.settings import ConnectivitySettings
from agent.storage.costs import Used
from agent.types import Handoff

# --- the table ------------------------------------------------------------------------

TABLE = {
    "delivered": (fake.ok("Paris"), Delivered),
    "empty": (fake.empty(), Rejected),
    "content filter": (fake.content_filter(), Rejected),
    "html": (fake.html(), Offline),
    "json that is no completion": (fake.raw(200, b'{"status": "log in"}'), Offline),
    "truncated json": (fake.raw(200, b'{"choices": [{"mess'), Offline),
    "302": (fake.redirect("http://127.0.0.1:9/v1"), Offline),
    "307": (fake.redirect("/elsewhere", 307), Offline),
    "511": (fake.status(511), Offline),
    "202": (fake.raw(202, b"{}"), Held),
    "queued by an outrider": (fake.ok(outrider={"decision": "queued"}), Held),
    "uncertain outrider": (fake.ok(outrider={"decision": "uncertain"}), Rejected),
    "429": (fake.rate_limited(), RateLimited),
    "503 with retry-after": (fake.rate_limited(seconds=3, code=503), RateLimited),
    "503": (fake.status(503), Retry),
    "500": (fake.status(500), Retry),
    "502": (fake.status(502), Retry),
    "529": (fake.status(529), Retry),
    "408": (fake.status(408), Retry),
    "409": (fake.status(409), Retry),
    "401": (fake.status(401, error_code="invalid_api_key"), Blocked),
    "402": (fake.status(402), Blocked),
    "403": (fake.status(403), Blocked),
    "404": (fake.status(404, error_code="model_not_found"), Blocked),
    "429 insufficient_quota": (fake.quota_used_up(), Blocked),
    "400": (fake.status(400), Rejected),
    "413": (fake.status(413), Rejected),
    "422": (fake.status(422), Rejected),
    "418": (fake.status(418), Rejected),
    "cut body": (fake.cut_body(), Retry),
    "cut before the reply": (fake.cut_before_reply(), Retry),
}


@pytest.mark.parametrize("name", TABLE)
async def test_outcome(cloud, name):
    behaviour, expected = TABLE[name]
    cloud.script(behaviour)
    outcome = await send(target_for(cloud.base_url))
    assert isinstance(outcome, expected), outcome
    assert outcome.left, "the body was sent in every one of these"
    assert len(cloud.chats) == 1, "one send is one request, whatever comes back"
    if isinstance(outcome, Offline):
        assert outcome.portal


async def test_retry_after_in_seconds_milliseconds_and_as_a_date(cloud):
    cloud.script(
        fake.rate_limited(seconds=7),
        fake.rate_limited(ms=1500),
        fake.rate_limited(at_ms=NOW + 20_000),
        fake.rate_limited(),
    )
    target = target_for(cloud.base_url)
    untils = [(await send(target)).until_ms for _ in range(4)]
    assert untils == [NOW + 7_000, NOW + 1_500, NOW + 20_000, None]


async def test_no_answer_after_the_send_is_a_retry(cloud):
    cloud.script(fake.hang())
    outcome = await send(target_for(cloud.base_url, timeout_s=1))
    assert outcome == Retry("no answer in time", left=True, silent=True)


async def test_an_answer_that_drips_is_bounded_by_the_deadline(cloud):
    async def drip(exchange):
        exchange.writer.write(fake.head(200, 10_000))
        while True:
            exchange.writer.write(b" ")
            await exchange.writer.drain()
            await asyncio.sleep(0.02)

    cloud.script(drip)
    assert isinstance(await send(target_for(cloud.base_url, timeout_s=1)), Retry)


async def test_a_reply_above_the_limit_is_rejected(cloud):
    cloud.script(fake.huge(200_000), fake.huge(200_000))
    rejected = await send(target_for(cloud.base_url, max_reply_bytes=100_000))
    assert isinstance(rejected, Rejected)
    assert rejected.used == Used(0, 0), "it was paid for, and nobody knows how much: the budget keeps what was reserved"
    assert isinstance(await send(target_for(cloud.base_url)), Delivered)


async def test_a_compressed_reply_is_not_unpacked(cloud):
    async def gzipped(exchange):
        await exchange.reply(200, b"\x1f\x8b" * 10, {"content-encoding": "gzip"})

    cloud.script(gzipped)
    assert isinstance(await send(target_for(cloud.base_url)), Blocked)
    assert cloud.chats[0].headers["accept-encoding"] == "identity"


# --- what leaves ----------------------------------------------------------------------


async def test_the_bytes_and_headers_that_leave(cloud, monkeypatch):
    monkeypatch.setenv("BIG_KEY", "sk-test")
    target = target_for(cloud.base_url, api_key_env="BIG_KEY")
    await send(target, hops=1)
    [chat] = cloud.chats
    assert chat.path == "/v1/chat/completions"
    assert chat.body == target.outgoing(record(), row()).body
    headers = chat.headers
    assert headers["host"] == f"127.0.0.1:{cloud.port}"
    assert headers["authorization"] == "Bearer sk-test"
    assert headers["idempotency-key"] == "e1"
    assert headers["x-outrider-hops"] == "2"
    assert headers["x-outrider-on-low-confidence"] == "abstain"
    assert headers["x-outrider-route-mode"] == "local_only"
    assert headers["content-type"] == "application/json"


async def test_a_chained_outrider_may_hand_on(cloud):
    await send(target_for(cloud.base_url, chain=True))
    headers = cloud.chats[0].headers
    assert "x-outrider-route-mode" not in headers
    assert "x-outrider-on-low-confidence" not in headers
    assert headers["x-outrider-hops"] == "1"


async def test_the_same_key_on_every_send(cloud):
    cloud.script(fake.status(500), fake.cut_body(), fake.ok())
    target = target_for(cloud.base_url)
    for _ in range(3):
        await send(target)
    assert cloud.keys == ["e1"] * 3
    assert len({chat.body for chat in cloud.chats}) == 1


async def test_a_redirect_never_takes_text_or_key_elsewhere(cloud, monkeypatch):
    monkeypatch.setenv("BIG_KEY", "sk-test")
    async with Cloud() as thief:
        for code in (301, 302, 303, 307, 308):
            cloud.script(fake.redirect(f"{thief.base_url}/chat/completions", code))
            outcome = await send(target_for(cloud.base_url, api_key_env="BIG_KEY"))
            assert isinstance(outcome, Offline)
            assert outcome.portal
        cloud.script_probes(fake.redirect(f"{thief.base_url}/models"))
        assert isinstance(await probe(target_for(cloud.base_url, api_key_env="BIG_KEY")), Offline)
        assert thief.requests == []


async def test_proxies_of_the_environment_are_not_used(cloud, monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert isinstance(await send(target_for(cloud.base_url)), Delivered)


async def test_a_probe_carries_no_text(cloud):
    assert await probe(target_for(cloud.base_url)) == Online()
    [received] = cloud.requests
    assert (received.method, received.path, received.body) == ("GET", "/v1/models", b"")


# --- handoffs -------------------------------------------------------------------------


async def test_refine_delivers_the_better_answer(cloud):
    cloud.script(fake.ok("Paris"))
    outcome = await send(target_for(cloud.base_url), handoff=Handoff.REFINE)
    assert outcome.answer.text == "Paris"
    assert {"role": "assistant", "content": "Lyon"} in cloud.chats[0].json["messages"]


@pytest.mark.parametrize(("reply", "verdict", "text"), [("RIGHT", "right", "Lyon"), ("WRONG\nParis", "wrong", "Paris")])
async def test_verify_keeps_the_verdict(cloud, reply, verdict, text):
    cloud.script(fake.ok(reply))
    outcome = await send(target_for(cloud.base_url), handoff=Handoff.VERIFY)
    assert (outcome.answer.verdict, outcome.answer.text) == (verdict, text)


async def test_verify_without_a_verdict_is_rejected(cloud):
    cloud.script(fake.ok("Paris, I think"))
    assert await send(target_for(cloud.base_url), handoff=Handoff.VERIFY) == Rejected(
        "the reply has no readable verdict", used=Used(7, 3, "cloud-model")
    )


async def test_verify_without_a_draft_is_a_fresh_request(cloud):
    cloud.script(fake.ok("Paris"))
    outcome = await send(target_for(cloud.base_url), handoff=Handoff.VERIFY, draft=None)
    assert (outcome.answer.verdict, outcome.answer.text) == (None, "Paris")


# --- not reachable --------------------------------------------------------------------


async def test_a_refused_connect_is_offline(cloud):
    await cloud.down()
    outcome = await send(target_for(cloud.base_url))
    assert isinstance(outcome, Offline)
    assert not outcome.left
    assert not outcome.portal


async def test_a_name_that_does_not_exist_is_offline(monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    outcome = await send(target_for("https://nowhere.invalid/v1"))
    assert outcome == Offline("the name cannot be resolved")


async def test_a_resolver_that_hangs_is_offline_within_the_connect_timeout(monkeypatch):
    release, lookups = threading.Event(), []

    def hang(*arguments, **_):
        lookups.append(arguments)
        release.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    target = target_for("https://slow.invalid/v1", connectivity=ConnectivitySettings(connect_timeout_s=0.1))
    try:
        outcomes = [await target.probe() for _ in range(MOST_LOOKUPS + 2)]
        assert outcomes == [Offline("no answer in time")] * (MOST_LOOKUPS + 2)
        assert len(lookups) == MOST_LOOKUPS, "lookups that hang do not become more and more"
    finally:
        release.set()
        await target.close()


async def test_a_lookup_that_hangs_holds_up_none_that_comes_later(monkeypatch, cloud):
    release, lookups = threading.Event(), []

    def hang_once(*arguments, **_):
        lookups.append(arguments)
        if len(lookups) == 1:
            release.wait(30)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", cloud.port))]

    monkeypatch.setattr(socket, "getaddrinfo", hang_once)
    connectivity = ConnectivitySettings(connect_timeout_s=0.1)
    target = target_for(f"http://localhost:{cloud.port}/v1", connectivity=connectivity)
    try:
        assert await target.probe() == Offline("no answer in time")
        assert isinstance(await target.probe(), Online)
    finally:
        release.set()
        await target.close()


async def test_a_connect_that_nobody_answers_is_offline(monkeypatch):
    # A full backlog drops what comes: the nearest thing to a black hole that loopback has.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            with pytest.raises(BlockingIOError):
                filler.connect(("127.0.0.1", port))
        connectivity = ConnectivitySettings(connect_timeout_s=0.2)
        outcome = await send(target_for(f"http://127.0.0.1:{port}/v1", connectivity=connectivity))
        for filler in fillers:
            filler.close()
    assert outcome == Offline("connect: no answer in time")


async def test_the_next_address_is_tried_when_one_does_not_connect(cloud, monkeypatch):
    def two(*_, **__):
        return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", cloud.port, 0, 0)),
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", cloud.port))]  # fmt: skip

    monkeypatch.setattr(socket, "getaddrinfo", two)
    assert isinstance(await send(target_for(f"http://localhost:{cloud.port}/v1")), Delivered)
    assert cloud.chats[0].headers["host"] == f"localhost:{cloud.port}"


async def test_giving_up_ends_sends_with_what_is_known_of_them(cloud):
    cloud.script(fake.hang())
    target = target_for(cloud.base_url)
    sending = asyncio.create_task(send(target))
    await cloud.received(1)
    target.give_up()
    assert await sending == Retry("no answer in time", left=True, silent=True)
