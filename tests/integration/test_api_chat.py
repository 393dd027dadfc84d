"""Chat completions over real HTTP with the real openai client: shapes, verdicts, streams, errors."""

import asyncio
import contextlib
import json
import re

import openai
import pytest
from fakes.api_server import MODEL, USER, chat, served, target_at
from fakes.cloud import cloud_in_thread

from agent.settings import QueueSettings, ServerSettings

ASK = [{"role": "user", "content": "hello there"}]


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """No target: what is not sure waits for a person."""
    with served(tmp_path_factory.mktemp("api") / "data") as server:
        yield server


@pytest.fixture(scope="module")
def impatient(tmp_path_factory):
    """Comments after each 20 ms of silence."""
    with served(tmp_path_factory.mktemp("impatient") / "data", heartbeat_s=0.02) as server:
        yield server


@pytest.fixture(scope="module")
def cloud():
    with cloud_in_thread() as server:
        yield server


@pytest.fixture(scope="module")
def joined(tmp_path_factory, cloud):
    """A target that answers."""
    targets = (target_at(cloud.base_url),)
    with served(tmp_path_factory.mktemp("joined") / "data", targets=targets) as server:
        yield server


def client_of(api, **options):
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key=USER, max_retries=0, **options)


def events_of(response):
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith(("data: ", ":")) for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1] if line.startswith("data: ")]


@contextlib.contextmanager
def streaming(api, body, headers=None):
    with api.client() as client, client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
        yield response


def masked(text):
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", "<id>", text)
    return re.sub(r'"created":\d+', '"created":0', text)


# --- the wire, byte for byte ----------------------------------------------------------


def test_golden_answer(api):
    response = api.chat("hello there")
    assert response.status_code == 200
    assert masked(response.text) == (
        '{"id":"chatcmpl-<id>","object":"chat.completion","created":0,"model":"small","choices":[{"index":0,'
        '"message":{"role":"assistant","content":"echo: hello there","refusal":null},"logprobs":null,'
        '"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10,'
        '"prompt_tokens_details":{"cached_tokens":3},"completion_tokens_details":{"reasoning_tokens":0}},"system_fingerprint":"fp_dddddddddddd","outrider":{'
        '"request_id":"<id>","confidence":0.99,"calibrated":false,"decision":"answered","reason":"confident",'
        '"source":"local","state":"answered","threshold":0.5}}'
    )
    body = response.json()
    assert response.headers["x-outrider-request-id"] == body["outrider"]["request_id"]
    assert response.headers["x-outrider-decision"] == "answered"
    assert response.headers["x-outrider-confidence"] == "0.99"
    assert response.headers["x-outrider-source"] == "local"
    assert response.headers["content-type"] == "application/json"
    assert "server" not in response.headers
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_golden_stream(api):
    response = api.chat("hello", stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    head = '{"id":"chatcmpl-<id>","object":"chat.completion.chunk","created":0,"model":"small","usage":null,"choices":[{"index":0,"delta":'
    tail = ',"logprobs":null,"finish_reason":null}]}'
    assert masked(response.text).split("\n\n") == [
        f'data: {head}{{"role":"assistant","content":"","refusal":null}}{tail}',
        f'data: {head}{{"content":"echo:"}}{tail}',
        f'data: {head}{{"content":" hello"}}{tail}',
        (
            f'data: {head}{{}},"logprobs":null,"finish_reason":"stop"}}],"system_fingerprint":"fp_dddddddddddd",'
            '"outrider":{"request_id":"<id>","confidence":0.99,"calibrated":false,"decision":"answered",'
            '"reason":"confident","source":"local","state":"answered","threshold":0.5}}'
        ),
        (
            'data: {"id":"chatcmpl-<id>","object":"chat.completion.chunk","created":0,"model":"small","usage":{'
            '"prompt_tokens":7,"completion_tokens":2,"total_tokens":9,"prompt_tokens_details":{"cached_tokens":3},'
            '"completion_tokens_details":{"reasoning_tokens":0}},"choices":[]}'
        ),
        "data: [DONE]",
        "",
    ]
    assert response.headers["x-outrider-request-id"] == events_of(response)[0]["id"].removeprefix("chatcmpl-")


def test_without_include_usage_no_chunk_has_it(api):
    assert all("usage" not in chunk for chunk in events_of(api.chat("hello", stream=True)))


# --- the openai client ----------------------------------------------------------------


def test_sync_client(api):
    with client_of(api) as client:
        answer = client.chat.completions.create(
            model=MODEL, messages=ASK, temperature=0.5, top_p=0.9, seed=3, max_tokens=5, stop=["X"], n=1, user="ann",
            metadata={"a": "b"}, logprobs=True, top_logprobs=2, extra_body={"outrider": {"egress": "never"}},
        )  # fmt: skip
        assert answer.choices[0].message.content == "echo: hello there"
        assert answer.usage.total_tokens == 10
        assert answer.outrider["decision"] == "answered"
        first = answer.choices[0].logprobs.content[0]
        assert (first.token, bytes(first.bytes)) == ("echo:", b"echo:")
        assert [other.logprob for other in first.top_logprobs] == [first.logprob, -9999.0]
        # An answer goes back as history, as the client writes it.
        again = client.chat.completions.create(model=MODEL, messages=[*ASK, answer.choices[0].message, *ASK])
        assert again.choices[0].message.role == "assistant"
    asked = api.engine.asked[-2]
    assert (asked.sampling.seed, asked.sampling.max_tokens, asked.sampling.stop) == (3, 5, ("X",))
    assert (asked.user, asked.metadata, asked.egress) == ("ann", {"a": "b"}, "never")


async def test_async_client_streaming_with_logprobs(api):
    async with openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key=USER, max_retries=0) as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=ASK, stream=True, logprobs=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "echo: hello there"
    tokens = [t.token for c in chunks if c.choices and c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert tokens == ["echo:", " hello", " there"]
    assert chunks[-2].outrider["decision"] == "answered"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == 3


def test_the_streaming_helper_of_the_client_puts_the_answer_together(api):
    with client_of(api) as client, client.chat.completions.stream(model=MODEL, messages=ASK) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "echo: hello there"


def test_thoughts_are_told_apart_from_the_answer(api):
    body = api.chat("ponder it").json()
    assert body["choices"][0]["message"] == {
        "role": "assistant",
        "content": "echo: ponder it",
        "refusal": None,
        "reasoning_content": "Hm, well.",
    }
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 5}
    deltas = [chunk["choices"][0]["delta"] for chunk in events_of(api.chat("ponder it", stream=True))]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm, well."
    assert "".join(delta.get("content", "") for delta in deltas) == "echo: ponder it"
    held = events_of(api.chat("ponder it", stream=True, outrider={"on_low_confidence": "abstain"}))
    assert {"reasoning_content": "Hm, well."} in [chunk["choices"][0]["delta"] for chunk in held]
    api.chat(
        "again",
        messages=[{"role": "user", "content": "a"}, body["choices"][0]["message"], {"role": "user", "content": "b"}],
    )
    assert [message.content for message in api.engine.asked[-1].messages] == ["a", "echo: ponder it", "b"]


def test_models(api):
    with client_of(api) as client:
        assert [model.id for model in client.models.list()] == [MODEL, "vendor/other"]
        assert client.models.retrieve("vendor/other").owned_by == "outrider"
        # The card says what the file could do; told is what one request gets.
        assert [model.outrider["context_tokens"] for model in client.models.list()] == [2048, 4096]
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve("absent")
    assert caught.value.code == "model_not_found"


# --- errors ---------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "error", "code", "param"),
    [
        ({"model": "smal"}, openai.NotFoundError, "model_not_found", "model"),
        ({"model": "absent"}, openai.NotFoundError, "model_not_found", "model"),
        ({"temperature": 3}, openai.BadRequestError, "invalid_value", "temperature"),
        ({"store": True}, openai.BadRequestError, "unsupported_parameter", "store"),
        ({"extra_body": {"best_of": 2}}, openai.BadRequestError, "unknown_parameter", "best_of"),
        ({"extra_headers": {"x-outrider-egress": "redact"}}, openai.BadRequestError, "unsupported_parameter", "egress"),
        (
            {"extra_body": {"outrider": {"route_mode": "cloud_only", "egress": "never"}}},
            openai.BadRequestError,
            "contradiction",
            "route_mode",
        ),
        (
            {"messages": [{"role": "user", "content": "overflow"}]},
            openai.BadRequestError,
            "context_length_exceeded",
            "messages",
        ),
        ({"messages": [{"role": "user", "content": "busy"}]}, openai.RateLimitError, "busy", None),
        ({"messages": [{"role": "user", "content": "crash"}]}, openai.InternalServerError, "engine_failed", None),
        (
            {"messages": [{"role": "user", "content": "quarantine"}]},
            openai.InternalServerError,
            "model_quarantined",
            None,
        ),
        ({"messages": [{"role": "user", "content": "timeout"}]}, openai.InternalServerError, "deadline_exceeded", None),
    ],
)
def test_errors_reach_the_client_in_its_own_classes(api, fields, error, code, param, stream):
    with client_of(api) as client, pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": ASK, "stream": stream, **fields})
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.status_code == caught.value.response.status_code >= 400
    if caught.value.status_code >= 500:
        assert caught.value.response.headers["x-should-retry"] == "false"
    if code == "busy":
        assert caught.value.response.headers["retry-after"] == "1"


def test_the_client_does_not_send_a_prompt_again_that_killed_the_engine(api):
    before = len(api.engine.asked)
    patient = openai.OpenAI(base_url=f"{api.url}/v1", api_key=USER, max_retries=5)
    with patient as client, pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "crash"}])
    assert len(api.engine.asked) == before + 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_bug_is_a_plain_500_that_quotes_nothing(api, stream, caplog):
    response = api.chat("explode secretword", stream=stream, outrider={"on_low_confidence": "wait"})
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secretword" not in response.text + caplog.text


def test_an_error_in_the_middle_of_a_stream_is_one_event(api):
    response = api.chat("midcrash now", stream=True)
    assert response.status_code == 200
    *chunks, error = events_of(response)
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "echo: midcrash"
    assert error == {"error": {"message": "scripted", "type": "server_error", "param": None, "code": "engine_failed"}}
    with client_of(api) as client, pytest.raises(openai.APIError, match="scripted"):
        list(
            client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "midcrash x"}], stream=True
            )
        )


def test_a_streamed_text_that_was_cut_ends_with_an_error_although_its_request_waits(joined):
    response = joined.chat("midcrash later", stream=True)
    *chunks, error = events_of(response)
    assert chunks[-1]["choices"][0]["finish_reason"] is None
    request_id = chunks[-1]["outrider"]["request_id"]
    assert (error["error"]["code"], error["error"]["type"]) == ("answer_cut", "server_error")
    assert request_id in error["error"]["message"]
    assert joined.settled(request_id)["cloud_answer"]["text"] == "cloud: midcrash later"
    with client_of(joined) as client, pytest.raises(openai.APIError, match="was cut"):
        list(
            client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "midcrash again"}], stream=True
            )
        )


def test_a_full_queue_is_told_and_a_local_text_is_still_given(tmp_path):
    with served(tmp_path / "data", queue=QueueSettings(max_rows=1, ballast_bytes=0)) as api:
        assert api.chat("unsure").json()["outrider"]["decision"] == "queued"
        body = api.chat("unsure too").json()
        assert (body["outrider"]["decision"], body["outrider"]["reason"]) == ("uncertain", "queue_full")
        assert body["choices"][0]["message"]["content"] == "echo: unsure too"
        response = api.chat("x", outrider={"route_mode": "cloud_only"})
        assert (response.status_code, response.json()["error"]["code"]) == (507, "queue_full")


# --- what a caller gets who asks for something unsure ---------------------------------


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
