"""What a caller gets whose answer is not sure; callers that leave, and those that come back with a key."""

import asyncio
import json

import pytest
from fakes.api_server import DESK, USER, chat, events_of, served, streaming
from fakes.cloud import cloud_in_thread

from agent.settings import ServerSettings

ASK = [{"role": "user", "content": "hello there"}]


@pytest.fixture(scope="module")
def cloud():
    with cloud_in_thread() as server:
        yield server


def verdict(body):
    outrider = body["outrider"]
    return outrider["decision"], outrider["reason"], outrider["state"], outrider["source"]


def test_draft(api):
    response = api.chat("unsure")
    assert response.status_code == 200
    assert verdict(response.json()) == ("queued", "low_confidence", "queued", "local")
    assert "location" not in response.headers


def test_no_signal_has_no_confidence(api):
    response = api.chat("nosignal")
    assert response.json()["outrider"]["confidence"] is None
    assert "x-outrider-confidence" not in response.headers
    assert response.json()["outrider"]["decision"] == "queued"


@pytest.mark.parametrize("fields", [{"on_low_confidence": "defer"}, {"route_mode": "cloud_only"}])
def test_202_without_text(api, fields):
    response = api.chat("unsure", outrider=fields)
    body = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/v1/requests/{body['outrider']['request_id']}"
    assert body["object"] == "chat.completion"
    assert (body["choices"][0]["message"]["content"], body["choices"][0]["finish_reason"]) == (None, None)
    assert body["outrider"]["source"] is None
    assert api.get(response.headers["location"]).json()["state"] == "queued"


def test_defer_of_a_sure_answer_is_the_answer(api):
    response = api.chat("hello", outrider={"on_low_confidence": "defer"})
    assert (response.status_code, response.json()["choices"][0]["message"]["content"]) == (200, "echo: hello")


@pytest.mark.parametrize("fields", [{}, {"route_mode": "local_only"}, {"egress": "never"}])
def test_abstain(api, fields):
    rows = api.get("/v1/queue").json()["counts"]
    response = api.chat("unsure", outrider={"on_low_confidence": "abstain", **fields})
    message = response.json()["choices"][0]["message"]
    assert response.status_code == 200
    assert message["content"] is None
    assert "0.10" in message["refusal"]
    assert response.json()["outrider"]["decision"] == "uncertain"
    assert api.get("/v1/queue").json()["counts"] == rows


@pytest.mark.parametrize(
    ("fields", "reason"), [({"route_mode": "local_only"}, "local_only"), ({"egress": "never"}, "egress_never")]
)
def test_uncertain_with_text_and_without_a_row(api, fields, reason):
    rows = api.get("/v1/queue").json()["counts"]
    body = api.chat("unsure", outrider=fields).json()
    assert verdict(body) == ("uncertain", reason, "answered", "local")
    assert body["choices"][0]["message"]["content"] == "echo: unsure"
    assert api.get("/v1/queue").json()["counts"] == rows


def test_nothing_of_a_caller_leaves_whose_key_says_never_whatever_it_asks_for(api):
    rows = api.get("/v1/queue").json()["counts"]
    answer = api.chat("unsure", token=DESK, outrider={"egress": "allow"})
    assert verdict(answer.json()) == ("uncertain", "egress_never", "answered", "local")
    assert api.get("/v1/queue").json()["counts"] == rows
    with api.client(DESK) as desk:
        assert desk.post("/v1/queue/drain").status_code == 403


def test_the_idempotency_key_of_one_caller_is_never_another_s(api):
    key = {"idempotency-key": "1"}
    mine, theirs = api.chat("mine", headers=key), api.chat("theirs", headers=key, token=DESK)
    assert (mine.status_code, theirs.status_code) == (200, 200)
    for token, answer, text in ((USER, mine, "mine"), (DESK, theirs, "theirs")):
        again = api.chat(text, headers=key, token=token)
        assert again.headers["x-outrider-replayed"] == "true"
        assert again.json() == answer.json()
    content = {"purpose": (None, "batch"), "file": ("in.jsonl", b"{}")}
    ids = set()
    for token in (USER, DESK):
        with api.client(token) as client:
            ids |= {client.post("/v1/files", files=content, headers=key).json()["id"] for _ in range(2)}
    assert len(ids) == 2


def test_wait_until_the_deadline_gets_the_draft_and_where_to_ask(api):
    response = api.chat("unsure", outrider={"on_low_confidence": "wait", "deadline_ms": 50})
    assert response.status_code == 202
    assert response.headers["location"].startswith("/v1/requests/")
    assert response.json()["choices"][0]["message"]["content"] == "echo: unsure"


def test_wait_gets_the_late_answer(joined):
    response = joined.chat("unsure one", outrider={"on_low_confidence": "wait"})
    body = response.json()
    assert response.status_code == 200
    assert body["choices"][0]["message"]["content"] == "cloud: unsure one"
    assert body["model"] == "cloud-model"
    assert verdict(body) == ("queued", "low_confidence", "resolved", "main")
    assert response.headers["x-outrider-source"] == "main"


def test_wait_for_what_the_target_refuses_gets_the_draft_or_an_error(joined, cloud):
    from fakes.cloud import status

    cloud.script(status(400))
    body = joined.chat("unsure two", outrider={"on_low_confidence": "wait"}).json()
    assert verdict(body) == ("queued", "low_confidence", "unresolved", "local")
    assert body["choices"][0]["message"]["content"] == "echo: unsure two"
    cloud.script(status(400))
    response = joined.chat("three", outrider={"on_low_confidence": "wait", "route_mode": "cloud_only"})
    assert (response.status_code, response.json()["error"]["code"]) == (502, "unresolved")


def test_a_crash_with_a_target_is_queued(joined):
    response = joined.chat("crash")
    assert response.status_code == 202
    assert response.json()["outrider"]["reason"] == "crash"
    assert joined.settled(response.json()["outrider"]["request_id"])["cloud_answer"]["text"] == "cloud: crash"


@pytest.mark.parametrize("mode", ["wait", "defer", "abstain"])
def test_held_streams_send_comments_then_one_text(impatient, mode):
    api = impatient
    api.engine.gate.clear()
    body = chat("gate unsure", stream=True, outrider={"on_low_confidence": mode, "deadline_ms": 300})
    with streaming(api, body) as response:
        lines = response.iter_lines()
        assert next(lines) == ": waiting"
        api.engine.gate.set()
        rest = [line for line in lines if line and line != ": waiting"]
    assert rest[-1] == "data: [DONE]"
    chunks = [json.loads(line[6:]) for line in rest[:-1]]
    texts = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
    assert texts == (["", "echo: gate unsure", None] if mode == "wait" else ["", None])
    last = chunks[-1]
    assert last["outrider"]["decision"] == ("uncertain" if mode == "abstain" else "queued")
    assert bool(last["choices"][0]["delta"].get("refusal")) is (mode == "abstain")


def test_a_draft_streams_while_it_is_made(api):
    api.engine.gate.clear()
    with streaming(api, chat("gate", stream=True)) as response:
        lines = (line for line in response.iter_lines() if line.startswith("data: {"))
        seen = [json.loads(next(lines)[6:])["choices"][0]["delta"]["content"] for _ in range(2)]
        assert seen == ["", "echo:"]  # the model has not gone on yet
        api.engine.gate.set()
        assert [json.loads(line[6:]) for line in lines][-1]["outrider"]["decision"] == "answered"


def test_streamed_text_is_never_swapped(joined):
    chunks = events_of(joined.chat("unsure stream", stream=True))
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "echo: unsure stream"
    assert joined.settled(chunks[-1]["outrider"]["request_id"])["cloud_answer"]["text"] == "cloud: unsure stream"


def test_a_wait_stream_has_only_the_late_answer(joined):
    chunks = events_of(joined.chat("unsure stream", stream=True, outrider={"on_low_confidence": "wait"}))
    assert [c["choices"][0]["delta"].get("content") for c in chunks] == ["", "cloud: unsure stream", None]
    assert {chunk["model"] for chunk in chunks} == {"cloud-model"}


# --- callers that leave ---------------------------------------------------------------


@pytest.mark.parametrize(("stream", "mode"), [(False, "draft"), (True, "draft"), (True, "wait")])
def test_a_caller_that_leaves_cancels_the_generation(api, stream, mode):
    async def leave():
        body = json.dumps(chat("hang", stream=stream, outrider={"on_low_confidence": mode})).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {USER}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        _, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(head.encode() + body)
        assert await asyncio.to_thread(api.engine.started.acquire, timeout=20)
        writer.close()

    while api.engine.started.acquire(blocking=False):
        pass
    while api.engine.cancelled.acquire(blocking=False):
        pass
    asyncio.run(leave())
    assert api.engine.cancelled.acquire(timeout=20)
    record = api.settled(api.engine.asked[-1].id)
    assert (record["state"], record["decision"]["reason"]) == ("cancelled", "cancelled")


def test_a_stop_of_the_server_ends_what_runs(tmp_path):
    with (
        served(tmp_path / "data", server=ServerSettings(grace_s=0)) as api,
        streaming(api, chat("hang", stream=True)) as got,
    ):
        lines = (line for line in got.iter_lines() if line)
        assert next(lines).startswith("data: ")
        api.server.should_exit = True
        rest = list(lines)
    assert json.loads(rest[-2][6:])["error"]["code"] == "shutting_down"
    assert rest[-1] == "data: [DONE]"
    assert api.engine.cancelled.acquire(timeout=20)


# --- Idempotency-Key ------------------------------------------------------------------


def test_a_replay_is_the_stored_answer(api):
    before = len(api.engine.asked)
    first, second = (api.chat("hello", headers={"idempotency-key": "k1"}) for _ in range(2))
    assert len(api.engine.asked) == before + 1
    assert second.text == first.text
    assert second.headers["x-outrider-replayed"] == "true"
    assert "x-outrider-replayed" not in first.headers
    replayed = events_of(api.chat("hello", stream=True, headers={"idempotency-key": "k2"}))
    again = api.chat("hello", stream=True, headers={"idempotency-key": "k2"})
    assert again.headers["x-outrider-replayed"] == "true"
    texts = [
        "".join(c["choices"][0]["delta"].get("content", "") for c in found) for found in (replayed, events_of(again))
    ]
    assert texts == ["echo: hello"] * 2
    assert events_of(again)[-1]["outrider"] == replayed[-1]["outrider"]


def test_the_key_with_another_body_is_refused(api):
    api.chat("hello", headers={"idempotency-key": "k3"})
    response = api.chat("other", headers={"idempotency-key": "k3"})
    assert (response.status_code, response.json()["error"]["code"]) == (422, "idempotency_key_reused")
    response = api.chat("hello", headers={"idempotency-key": "k3", "x-outrider-egress": "never"})
    assert response.status_code == 422


def test_the_key_of_a_running_request_is_409(api):
    api.engine.gate.clear()
    headers = {"idempotency-key": "k4"}
    with streaming(api, chat("gate", stream=True), headers) as response:
        lines = response.iter_lines()
        next(lines)
        other = api.chat("gate", stream=True, headers=headers)
        assert (other.status_code, other.json()["error"]["code"]) == (409, "still_running")
        api.engine.gate.set()
        list(lines)
    assert api.chat("gate", stream=True, headers=headers).headers["x-outrider-replayed"] == "true"


def test_a_failed_request_frees_its_key(api):
    headers = {"idempotency-key": "k5"}
    assert api.chat("busy", headers=headers).status_code == 429
    before = len(api.engine.asked)
    assert api.chat("busy", headers=headers).status_code == 429
    assert len(api.engine.asked) == before + 1


def test_a_replay_of_a_deferred_request_brings_the_late_answer(joined):
    headers = {"idempotency-key": "k6"}
    fields = {"outrider": {"on_low_confidence": "defer"}}
    first = joined.chat("unsure six", headers=headers, **fields)
    assert first.status_code == 202
    joined.settled(first.json()["outrider"]["request_id"])
    second = joined.chat("unsure six", headers=headers, **fields)
    assert (second.status_code, second.json()["choices"][0]["message"]["content"]) == (200, "cloud: unsure six")
    assert second.json()["outrider"]["request_id"] == first.json()["outrider"]["request_id"]


def test_a_loop_of_outriders_is_refused(api):
    assert api.chat("hello", headers={"x-outrider-hops": "2"}).status_code == 200
    response = api.chat("hello", headers={"x-outrider-hops": "3"})
    assert (response.status_code, response.json()["error"]["code"]) == (508, "too_many_hops")
