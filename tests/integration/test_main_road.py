"""The product's sentence, through a real daemon: answered, judged, queued, escalated, joined."""

import json
import time

import openai
import psutil
import pytest
from fakes.cloud import cloud_in_thread
from fakes.daemon_process import DaemonProcess

TARGET = """
[[targets]]
name = "main"
base_url = "{url}"
model = "{model}"
egress = "{egress}"

[connectivity]
probe_cap_s = 1
"""
MODEL = "smollm2-135m-instruct"


@pytest.fixture
def cloud():
    with cloud_in_thread() as server:
        yield server


@pytest.fixture
def daemon(tmp_path, cloud):
    process = DaemonProcess(tmp_path / "device", TARGET.format(url=cloud.base_url, model="big", egress="allow"))
    process.start()
    yield process
    assert process.stop() == 0, process.log()


def settled(daemon, request_id, states=("resolved", "unresolved")):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        record = daemon.request(request_id)
        if record["state"] in states:
            return record
        time.sleep(0.05)
    raise AssertionError(record)


def test_a_sure_answer_stays_here(daemon, cloud):
    response = daemon.chat("hello")
    body = response.json()
    assert response.status_code == 200
    assert body["choices"][0]["message"]["content"] == "echo: hello"
    assert body["outrider"]["decision"] == "answered"
    assert body["outrider"]["confidence"] > 0.9
    assert body["outrider"]["calibrated"] is False
    assert cloud.requests == []


def test_an_unsure_answer_is_escalated_and_joined(daemon, cloud):
    body = daemon.chat("unsure about this").json()
    assert body["outrider"]["decision"] == "queued"
    record = settled(daemon, body["outrider"]["request_id"])
    assert record["state"] == "resolved"
    assert record["cloud_answer"]["text"] == "cloud: unsure about this"
    assert record["generation"]["text"] == "echo: unsure about this"
    assert record["decision"]["reason"] == "low_confidence"
    assert [chat.json["model"] for chat in cloud.chats] == ["big"]


def test_no_signal_is_never_sure(daemon):
    body = daemon.chat("nosignal").json()
    assert body["outrider"]["confidence"] is None
    assert body["outrider"]["decision"] == "queued"
    assert body["outrider"]["reason"] == "no_signal"


def test_wait_gets_the_late_answer_in_the_same_call(daemon):
    body = daemon.chat("unsure", on_low_confidence="wait").json()
    assert body["choices"][0]["message"]["content"] == "cloud: unsure"
    assert body["outrider"]["source"] == "main"


def test_wait_until_the_deadline_gets_the_draft(daemon, cloud):
    cloud.default_probe = cloud.default = None  # every exchange breaks
    response = daemon.chat("unsure", on_low_confidence="wait", deadline_ms=500)
    assert response.status_code == 202
    assert response.headers["location"] == f"/v1/requests/{response.json()['outrider']['request_id']}"
    assert response.json()["choices"][0]["message"]["content"] == "echo: unsure"


def test_defer_and_abstain(daemon, cloud):
    response = daemon.chat("unsure", on_low_confidence="defer")
    assert response.status_code == 202
    assert response.headers["location"].startswith("/v1/requests/")
    response = daemon.chat("unsure", on_low_confidence="abstain")
    assert response.status_code == 200
    assert response.json()["outrider"]["decision"] == "uncertain"
    assert response.json()["choices"][0]["message"]["content"] is None


@pytest.mark.parametrize("fields", [{"egress": "never"}, {"route_mode": "local_only"}])
def test_what_policy_forbids_never_leaves(daemon, cloud, fields):
    body = daemon.chat("unsure and private", **fields).json()
    assert body["outrider"]["decision"] == "uncertain"
    assert body["choices"][0]["message"]["content"] == "echo: unsure and private"
    follow = daemon.chat("unsure, may leave").json()
    settled(daemon, follow["outrider"]["request_id"])
    assert all("private" not in chat.body.decode() for chat in cloud.chats)


def test_a_crash_of_the_worker_is_queued_and_the_next_request_works(daemon):
    response = daemon.chat("crash now")
    assert response.status_code == 202
    assert response.json()["outrider"]["reason"] == "crash"
    assert settled(daemon, response.json()["outrider"]["request_id"])["state"] == "resolved"
    assert daemon.chat("hello again").json()["outrider"]["decision"] == "answered"


def test_the_openai_client_streams_with_the_verdict_in_the_last_chunk(daemon):
    client = openai.OpenAI(base_url=f"{daemon.url}/v1", api_key=daemon.token())
    with client:
        stream = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "unsure but streaming"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "echo: unsure but streaming"
    verdicts = [chunk.outrider for chunk in chunks if getattr(chunk, "outrider", None)]
    assert [verdict["decision"] for verdict in verdicts] == ["queued"]
    assert chunks[-1].usage.completion_tokens == 4


def test_rows_accepted_without_a_target_stay_until_released(tmp_path, cloud):
    daemon = DaemonProcess(tmp_path / "device").start()
    for number in range(100):
        assert daemon.chat(f"unsure secret {number}").json()["outrider"]["decision"] == "queued"
    daemon.stop()
    daemon.configure(TARGET.format(url=cloud.base_url, model="big", egress="allow"))
    daemon.start()
    settled(daemon, daemon.chat("unsure and new").json()["outrider"]["request_id"])
    assert [chat.last_user_text for chat in cloud.chats] == ["unsure and new"]
    with daemon.client(admin=True) as client:
        queue = client.get("/v1/queue").json()
    assert queue["counts"]["awaiting_approval"]["rows"] == 100
    assert daemon.stop() == 0


def test_another_outrider_is_a_target(tmp_path):
    big = DaemonProcess(tmp_path / "big").start()
    key_file = tmp_path / "key"
    key_file.write_text(big.token())
    key_file.chmod(0o600)
    toml = TARGET.format(url=f"{big.url}/v1", model=MODEL, egress="allow").replace(
        'egress = "allow"', f'egress = "allow"\napi_key_file = "{key_file}"'
    )
    small = DaemonProcess(tmp_path / "small", toml + "\n[confidence]\nthreshold = 1.0\n").start()
    # The bigger machine is sure (its threshold is the default) of what the small one was not.
    sure_there = small.chat("hello").json()["outrider"]["request_id"]
    record = settled(small, sure_there)
    assert record["state"] == "resolved"
    assert "echo" in record["cloud_answer"]["text"]
    # What neither is sure of stays unresolved: the draft is kept, and nobody claims an answer.
    unsure_there = small.chat("unsure").json()["outrider"]["request_id"]
    record = settled(small, unsure_there)
    assert record["state"] == "unresolved"
    assert record["generation"]["text"] == "echo: unsure"
    with big.client(admin=True) as client:
        assert client.get("/v1/queue").json()["counts"].get("awaiting_approval", {}).get("rows", 0) == 0
    assert small.stop() == big.stop() == 0


def test_the_parent_stays_small_and_serves_without_an_engine(daemon):
    daemon.chat("hello")
    assert psutil.Process(daemon.pid).memory_info().rss <= 60 << 20


def test_events_of_a_request(daemon):
    request_id = daemon.chat("unsure").json()["outrider"]["request_id"]
    with daemon.client() as client, client.stream("GET", f"/v1/requests/{request_id}/events") as response:
        states = [json.loads(line[6:])["state"] for line in response.iter_lines() if line.startswith("data: {")]
    assert states[-1] == "resolved"
