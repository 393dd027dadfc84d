"""Chat completions over real HTTP with the real openai client: shapes, streams, errors."""

import re

import openai
import pytest
from fakes.api_server import MODEL, USER, events_of, served
from fakes.cloud import cloud_in_thread

from agent.settings import EngineSettings, QueueSettings

ASK = [{"role": "user", "content": "hello there"}]


@pytest.fixture(scope="module")
def cloud():
    with cloud_in_thread() as server:
        yield server


def client_of(api, **options):
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key=USER, max_retries=0, **options)


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
        '"source":"local","state":"answered","rule":"threshold",'
        '"trace":["route_mode is local_first","egress is approve","target is not configured","threshold: 0.990 >= 0.5"],'
        '"threshold":0.5}}'
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
            '"reason":"confident","source":"local","state":"answered","rule":"threshold",'
            '"trace":["route_mode is local_first","egress is approve","target is not configured","threshold: 0.990 >= 0.5"],'
            '"threshold":0.5}}'
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
        running, other = (client.models.retrieve(name).outrider for name in (MODEL, "vendor/other"))
        assert (running["loaded"], running["quantization"], running["parameters"]) == (True, "Q4_1", 134_515_008)
        assert (other["loaded"], other["quantization"], other["capabilities"]["suffix"]) == (False, None, None)
        assert running["licence"] == "Apache-2.0"
        assert running["limits"]["output_tokens"] == 2047
        assert running["limits"]["at_once"] == EngineSettings().parallel
        assert running["capabilities"]["json_schema"]
        assert (running["capabilities"]["suffix"], running["capabilities"]["vision"]) == (False, False)
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
        ({"extra_headers": {"x-outrider-egress": "some"}}, openai.BadRequestError, "invalid_value", "outrider.egress"),
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
