"""Files and batches over real HTTP with the real openai client."""

import io
import json
import time

import httpx2
import openai
import pytest
from fakes.api_server import MODEL, TLS, USER, ScriptedEngine, chat, served, target_at
from fakes.cloud import cloud_in_thread, ok, slow
from fakes.daemon_process import DaemonProcess

from agent.api.batch_runner import BatchRunner
from agent.api.chat_answer import ChatShape
from agent.delivery_settings import FileSettings
from agent.errors import DiskFull

CHAT = "/v1/chat/completions"


def client_of(api):
    http = httpx2.Client(trust_env=False, verify=TLS, timeout=60)
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key=USER, max_retries=0, http_client=http)


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    files = FileSettings(max_bytes=3 << 20, total_bytes=5 << 20)
    with served(tmp_path_factory.mktemp("batches") / "data", files=files) as server:
        yield server


def lines_of(*said, url=CHAT, **fields):
    bodies = [chat(text, **fields) for text in said]
    return [{"custom_id": f"line-{n}", "method": "POST", "url": url, "body": body} for n, body in enumerate(bodies, 1)]


def upload(client, lines, **fields):
    raw = "\n".join(json.dumps(line) for line in lines)
    return client.files.create(file=("in.jsonl", io.BytesIO(raw.encode())), purpose="batch", **fields)


def ended(client, batch):
    until = time.monotonic() + 60
    while batch.ended_at is None if hasattr(batch, "ended_at") else batch.status in {
        "validating", "in_progress", "cancelling", "finalizing",
    }:  # fmt: skip
        assert time.monotonic() < until, batch
        time.sleep(0.02)
        batch = client.batches.retrieve(batch.id)
    return batch


def run(client, lines, url=CHAT, **fields):
    file = upload(client, lines)
    made = client.batches.create(input_file_id=file.id, endpoint=url, completion_window="24h", **fields)
    assert made.status == "validating"
    return ended(client, made)


def read(client, file_id):
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()] if file_id else []


# --- files ----------------------------------------------------------------------------


def test_a_file_comes_back_as_it_was(api):
    raw = bytes(range(256)) * 5000 + b"\r\n--x\r\n"  # more than one piece, and what looks like a delimiter
    with client_of(api) as client:
        file = client.files.create(file=("some name.jsonl", raw), purpose="batch")
        assert (file.filename, file.bytes, file.purpose, file.status) == (
            "some name.jsonl", len(raw), "batch", "processed",
        )  # fmt: skip
        assert client.files.content(file.id).content == raw
        assert client.files.retrieve(file.id) == file
        other = client.files.create(file=b"x", purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600})
        assert other.expires_at == pytest.approx(other.created_at + 3600, abs=1)
        assert [one.id for one in client.files.list(limit=1)][:2] == [other.id, file.id]
        assert client.files.delete(file.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.content(file.id)
        client.files.delete(other.id)


def test_files_have_limits_and_leave_nothing_behind(api):
    with client_of(api) as client:
        with pytest.raises(openai.APIStatusError, match=r"files\.max_bytes"):
            client.files.create(file=bytes((3 << 20) + 1), purpose="batch")
        held = [client.files.create(file=bytes(2 << 20), purpose="batch") for _ in range(2)]
        with pytest.raises(openai.InternalServerError, match=r"files\.total_bytes"):
            client.files.create(file=bytes(2 << 20), purpose="batch")
        with pytest.raises(openai.BadRequestError, match="purpose must be batch"):
            client.files.create(file=b"x", purpose="assistants")
        for file in held:
            client.files.delete(file.id)
        assert not [*client.files.list()]


def test_the_same_key_is_the_same_file_and_batch(api):
    headers = {"Idempotency-Key": "f-1"}
    lines = lines_of("hello")
    with client_of(api) as client:
        file, again = (upload(client, lines, extra_headers=headers) for _ in range(2))
        assert file.id == again.id
        with pytest.raises(openai.UnprocessableEntityError):
            upload(client, lines_of("other"), extra_headers=headers)
        asked = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h", "extra_headers": headers}
        one, other = (client.batches.create(**asked) for _ in range(2))
        assert one.id == other.id
        ended(client, one)


# --- batches --------------------------------------------------------------------------


def test_every_line_has_its_answer_or_its_error(api):
    lines = lines_of("hello", "crash", "nosignal", outrider={"egress": "never"})
    lines[2]["body"]["temperature"] = 9
    with client_of(api) as client:
        batch = run(client, lines, metadata={"a": "b"})
        assert (batch.status, batch.metadata) == ("completed", {"a": "b"})
        assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (3, 1, 2)
        (good,) = read(client, batch.output_file_id)
        assert (good["custom_id"], good["response"]["status_code"], good["error"]) == ("line-1", 200, None)
        assert good["response"]["body"]["choices"][0]["message"]["content"] == "echo: hello"
        bad = read(client, batch.error_file_id)
        assert [(line["custom_id"], line["response"]["status_code"]) for line in bad] == [
            ("line-2", 503), ("line-3", 400),
        ]  # fmt: skip
        assert bad[1]["response"]["body"]["error"]["param"] == "temperature"
        assert client.files.retrieve(batch.output_file_id).purpose == "batch_output"
        assert client.files.retrieve(batch.output_file_id).bytes == len(
            client.files.content(batch.output_file_id).content
        )
        assert batch.id in [one.id for one in client.batches.list()]


@pytest.mark.parametrize("url", ["/v1/responses", "/v1/completions"])
def test_other_endpoints(api, url):
    key = "input" if url == "/v1/responses" else "prompt"
    line = {"custom_id": "a", "method": "POST", "url": url, "body": {"model": MODEL, key: "hello"}}
    with client_of(api) as client:
        batch = run(client, [line], url)
        body = read(client, batch.output_file_id)[0]["response"]["body"]
    if url == "/v1/responses":
        assert (body["status"], body["output"][0]["content"][0]["text"]) == ("completed", "echo: hello")
    else:
        assert body["choices"][0]["text"] == "echo: hello"


def test_what_is_wrong_with_an_input_is_told_by_line(api):
    lines = lines_of("a", "b", "c", "d")
    lines[1]["custom_id"] = "line-1"
    lines[2]["url"] = "/v1/embeddings"
    lines[3]["method"] = "GET"
    with client_of(api) as client:
        batch = run(client, lines)
    assert batch.status == "failed"
    assert [(error.line, error.code) for error in batch.errors.data] == [
        (2, "duplicate_custom_id"), (3, "mismatched_endpoint"), (4, "invalid_method"),
    ]  # fmt: skip


def test_a_batch_is_cancelled(api):
    with client_of(api) as client:
        file = upload(client, lines_of("hello", *["hang"] * 20))
        batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        assert api.engine.started.acquire(timeout=10)
        assert api.engine.started.acquire(timeout=10)
        with pytest.raises(openai.ConflictError):
            client.files.delete(file.id)
        assert client.batches.cancel(batch.id).status == "cancelling"
        batch = ended(client, batch)
        assert (batch.status, batch.request_counts.completed + batch.request_counts.failed) == ("cancelled", 21)
        assert {line["error"]["code"] for line in read(client, batch.error_file_id)} == {"batch_cancelled"}
    assert not [*api.get("/v1/requests?state=running").json()["data"]]


def test_a_batch_that_was_cancelled_while_no_daemon_ran_begins_no_line(tmp_path):
    engine = ScriptedEngine()
    with served(tmp_path / "data", engine=engine) as api, client_of(api) as client:
        api.call(_stop_batches(api))
        api.server.config.app.state.batches.begin = lambda batch: None
        file = upload(client, lines_of("one", "two", "three"))
        batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        runner = BatchRunner(api.server.config.app.state.deps)
        stored = api.call(api.storage.batches.get(batch.id))
        assert api.call(runner._validate(stored)) == ()
        client.batches.cancel(batch.id)
    engine = ScriptedEngine()
    with served(tmp_path / "data", engine=engine) as api, client_of(api) as client:
        batch = ended(client, client.batches.retrieve(batch.id))
        assert (batch.status, batch.request_counts.failed) == ("cancelled", 3)
        assert api.get("/v1/requests").json()["data"] == []
    assert engine.asked == []


def test_somebody_who_waits_goes_before_a_batch(api):
    api.engine.gate.clear()
    with client_of(api) as client:
        file = upload(client, lines_of(*["gate"] * 12))
        batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        while len([asked for asked in api.engine.asked if asked.background]) < 4:
            time.sleep(0.01)
        assert api.chat("hello").json()["choices"][0]["message"]["content"] == "echo: hello"
        api.engine.gate.set()
        assert ended(client, batch).request_counts.completed == 12


def test_an_unsure_line_waits_for_its_late_answer(tmp_path):
    with cloud_in_thread() as cloud:
        cloud.default = slow(0.1, ok())
        with served(tmp_path / "data", targets=(target_at(cloud.base_url),)) as api, client_of(api) as client:
            batch = run(client, [*lines_of("hello", "unsure a"), *lines_of("unsure b", outrider={
                "on_low_confidence": "draft"})[:1]][:2])  # fmt: skip
            told = [line["response"]["body"] for line in read(client, batch.output_file_id)]
            assert [body["choices"][0]["message"]["content"] for body in told] == ["echo: hello", "cloud: unsure a"]
            assert told[1]["outrider"]["source"] == "main"


def test_without_a_target_an_unsure_line_takes_its_draft(api):
    with client_of(api) as client:
        batch = run(client, lines_of("unsure c"))
        (line,) = read(client, batch.output_file_id)
    assert line["response"]["body"]["choices"][0]["message"]["content"] == "echo: unsure c"
    assert line["response"]["body"]["outrider"]["decision"] == "queued"


def test_a_full_disk_and_a_bug_cost_a_batch_no_other_line(tmp_path, monkeypatch):
    monkeypatch.setattr("agent.api.batch_runner.LOOK_EVERY_S", (0.01, 0.01))
    with served(tmp_path / "data") as api, client_of(api) as client:
        store, full = api.storage.journal.open, iter([DiskFull("no space left")] * 4)
        shape = ChatShape.whole

        async def sometimes(*arguments, **fields):
            if error := next(full, None):
                raise error
            return await store(*arguments, **fields)

        def faulty(self, given):
            if "two" in given[0].answer.text:
                raise ValueError("a bug")
            return shape(self, given)

        monkeypatch.setattr(api.storage.journal, "open", sometimes)
        monkeypatch.setattr(ChatShape, "whole", faulty)
        batch = run(client, lines_of("one", "two", "three"))
        assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 2, 1)
        (failed,) = read(client, batch.error_file_id)
        assert (failed["custom_id"], failed["response"]["body"]["error"]["code"]) == ("line-2", "internal_error")


def test_a_batch_that_expires_gives_drafts_and_tells_the_rest(tmp_path):
    engine = ScriptedEngine()
    with served(tmp_path / "data", engine=engine) as api, client_of(api) as client:
        lines = lines_of("unsure d", "hang", outrider={"on_low_confidence": "wait"})
        file = upload(client, lines)
        batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        while api.get("/v1/queue").json()["counts"]["awaiting_approval"]["rows"] < 1 or len(engine.asked) < 2:
            time.sleep(0.01)
        time.sleep(0.1)
        api.call(_stop_batches(api))
        api.skew_ms = 25 * 3_600_000
        api.call(api.server.config.app.state.batches.start())
        batch = ended(client, batch)
        assert batch.status == "expired"
        assert [line["custom_id"] for line in read(client, batch.output_file_id)] == ["line-1"]
        (late,) = read(client, batch.error_file_id)
        assert (late["custom_id"], late["error"]["code"]) == ("line-2", "batch_expired")


async def _stop_batches(api):
    await api.server.config.app.state.batches.stop()


KILLS = (0.15, 0.4, 0.3)


def test_a_batch_of_1000_lines_with_kills_answers_each_once(tmp_path):
    daemon = DaemonProcess(tmp_path, "[engine]\nparallel = 8\n").start()
    try:
        model = "smollm2-135m-instruct"
        lines = [
            {"custom_id": f"c{n}", "method": "POST", "url": CHAT,
             "body": {"model": model, "messages": [{"role": "user", "content": f"hello {n}"}]}}
            for n in range(1000)
        ]  # fmt: skip

        def connected():
            http = httpx2.Client(trust_env=False, verify=TLS, timeout=60)
            return openai.OpenAI(base_url=f"{daemon.url}/v1", api_key=daemon.token(), max_retries=0, http_client=http)

        with connected() as client:
            file = upload(client, lines)
            batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        for share in KILLS:
            with connected() as client:
                begun = client.batches.retrieve(batch.id).request_counts.completed
                while client.batches.retrieve(batch.id).request_counts.completed < begun + 1000 * share * 0.5:
                    time.sleep(0.01)
            daemon.kill()
            daemon.start()
        with connected() as client:
            batch = ended(client, batch)
            counts = batch.request_counts
            assert (batch.status, counts.total, counts.completed, counts.failed) == ("completed", 1000, 1000, 0)
            told = read(client, batch.output_file_id)
        assert [line["custom_id"] for line in told] == [f"c{n}" for n in range(1000)]
        for n, line in enumerate(told):
            assert line["response"]["body"]["choices"][0]["message"]["content"] == f"echo: hello {n}"
        assert len({line["response"]["request_id"] for line in told}) == 1000
        with daemon.client() as client:
            page = client.get("/v1/requests?limit=1000").json()
        # One answered request for each line: what was cut short was begun anew under the same id.
        assert (len(page["data"]), page["has_more"]) == (1000, False)
        assert {record["state"] for record in page["data"]} == {"answered"}
    finally:
        daemon.stop()
