"""What is erased, purged or out of its time is nowhere any more: not in free pages, logs, backups made later."""

import array
import asyncio
import io
import json
import logging
import os
import threading
import time
from types import SimpleNamespace

import httpx2
import openai
import psutil
import pytest
from fakes import needles
from fakes.api_server import ADMIN, MODEL, TLS, USER, chat, served, target_at
from fakes.cloud import cloud_in_thread, ok, status
from fakes.command_line import as_json, outrider
from fakes.daemon_process import DaemonProcess

from agent import executable
from agent.records import StoredPrefix
from agent.storage import keys
from agent.storage.backup import backup

ANN = "subject-needle-ann-5f1d"
TEXT = "needle-in-text-77c0e2"
DAY = 86_400_000


@pytest.fixture
def cloud():
    with cloud_in_thread() as server:
        server.default = ok(f"cloud: {TEXT}")
        yield server


@pytest.fixture
def api(tmp_path, cloud, monkeypatch, caplog):
    """An API that the command line finds, with its temporary files in a folder of their own and its log kept at DEBUG."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    caplog.set_level(logging.DEBUG)
    with served(tmp_path / "data", targets=(target_at(cloud.base_url),)) as server:
        address = {"pid": os.getpid(), "started": executable.started(os.getpid()), "url": server.url}
        (tmp_path / "data" / "daemon.json").write_text(json.dumps(address))
        for name, token in (("token", USER), ("admin-token", ADMIN)):
            (tmp_path / "data" / name).write_text(token)
        (tmp_path / "outrider.toml").write_text(f'data_dir = "{tmp_path / "data"}"\n')
        server.user = SimpleNamespace(config=tmp_path / "outrider.toml")
        server.folder, server.log = tmp_path, caplog
        yield server


def leftovers(api, *texts):
    """Return where these texts lie, in whatever form: files, decrypted pages, log, a backup made now."""
    data = api.folder / "data"
    wanted = [form for text in texts for form in needles.forms(text)]
    (api.folder / "later.bak").unlink(missing_ok=True)
    backup(data, api.folder / "later.bak")
    found = needles.places([api.folder], keys.load(data, {}).material, wanted)
    return found + (["log"] if any(form in api.log.text.encode() for form in wanted) else [])


def client_of(api):
    http = httpx2.Client(trust_env=False, verify=TLS, timeout=60)
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key=USER, max_retries=0, http_client=http)


def ask_much(api):
    """Ask in every way that leaves something behind."""
    said = f"the {TEXT} in a sentence"
    answered = api.chat(said, user=ANN, headers={"idempotency-key": "one"}).json()["outrider"]["request_id"]
    late = api.chat(f"unsure {said}", metadata={"subject": ANN}).json()["outrider"]["request_id"]
    waits = api.chat(f"unsure {said}", safety_identifier=ANN, outrider={"egress": "approve"}).json()
    api.classify(said, [TEXT, "other"], user=ANN)
    assert api.chat(f"explode {said}", user=ANN).status_code == 500
    assert api.chat(f"crash {said}", user=ANN).status_code == 202
    api.settled(late)
    row = waits["outrider"]["request_id"]
    assert api.post(f"/v1/queue/{row}/edit", {"text": f"edited {TEXT}"}).status_code == 200
    said_of = {"request_id": answered, "verdict": "corrected", "answer": f"rather {TEXT}"}
    with api.client() as client:
        assert client.post("/v1/feedback", json=said_of).status_code == 200
    with client_of(api) as client:
        first = client.responses.create(model=MODEL, input=said, user=ANN)
        client.responses.create(model=MODEL, input="and then?", previous_response_id=first.id)
        bodies = [chat(said, user=ANN), chat("hello", user="bob"), chat(f"unsure {said}", user=ANN)]
        lines = [
            {"custom_id": f"{body['user']}-{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            for n, body in enumerate(bodies)
        ]
        raw = "\n".join(map(json.dumps, lines)).encode()
        file = client.files.create(file=("in.jsonl", io.BytesIO(raw)), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        while client.batches.retrieve(batch.id).status != "completed":
            time.sleep(0.02)
        return client.batches.retrieve(batch.id)


def test_nothing_of_a_person_is_left_after_an_erasure(api):
    batch = ask_much(api)
    api.call(api.storage.db.checkpoint())
    assert {"outrider.db decrypted", "later.bak decrypted"} <= set(leftovers(api, TEXT))
    assert "log" not in leftovers(api, TEXT, ANN)
    counted = as_json(api.user, "erase", "--subject", ANN, "--dry-run")
    assert counted["dry_run"] is True
    assert all(counted[kind] for kind in (
        "requests", "answers", "escalations", "edits", "attempts", "feedback", "batch_lines", "file_lines",
    )), counted  # fmt: skip
    asked = outrider(api.user, "erase", "--subject", ANN, stdin="n\n", code=1)
    assert "erase it now?" in asked.stderr
    lines = api.get("/v1/egress").json()["data"]
    erased = as_json(api.user, "erase", "--subject", ANN, "--yes")
    assert {**erased, "dry_run": True} == counted
    assert leftovers(api, TEXT, ANN) == []
    assert api.get("/v1/egress").json()["data"] == lines
    assert api.get("/v1/egress/verify").json()["whole"]
    with client_of(api) as client:
        (line,) = client.files.content(batch.output_file_id).text.splitlines()
        assert "echo: hello" in line
        assert client.files.content(batch.input_file_id).text.count(TEXT) == 0
    (record,) = api.get("/v1/requests").json()["data"]
    assert api.get(f"/v1/requests/{record['id']}").json()["generation"]["text"] == "echo: hello"
    assert as_json(api.user, "erase", "--subject", ANN, "--yes")["requests"] == 0
    assert api.chat("new", user=ANN, headers={"idempotency-key": "one"}).status_code == 200


def test_what_is_under_way_is_ended_and_its_late_answer_discarded(api, cloud):
    release = threading.Event()

    async def held(exchange):
        while not release.is_set():
            await asyncio.sleep(0.01)
        await ok(f"cloud: {TEXT}")(exchange)

    cloud.default = held
    api.chat(f"unsure {TEXT}", user=ANN)
    while not cloud.chats:
        time.sleep(0.01)
    with client_of(api) as client:
        running = client.responses.create(model=MODEL, input=f"hang {TEXT}", user=ANN, background=True)
    assert api.engine.started.acquire(timeout=30)
    waiting = threading.Thread(target=lambda: results.append(api.chat(f"gate {TEXT}", user=ANN)))
    results = []
    waiting.start()
    while len(api.engine.asked) < 3:
        time.sleep(0.01)
    erased = api.post("/v1/erase", {"subject": ANN}).json()
    assert (erased["in_flight"], erased["requests"]) == (1, 3)
    api.engine.gate.set()
    release.set()
    waiting.join(30)
    assert results[0].status_code == 404, results[0].text
    assert "erased" in results[0].json()["error"]["message"]
    while any(target["in_flight"] for target in api.get("/readyz").json()["targets"]):
        time.sleep(0.01)
    assert api.get("/v1/requests").json()["data"] == []
    assert api.get(f"/v1/responses/{running.id}").status_code == 404
    api.call(api.storage.db.checkpoint())
    assert leftovers(api, TEXT, ANN) == []


@pytest.mark.parametrize("running", [True, False])
def test_the_command_works_with_and_without_a_daemon(tmp_path, cloud, running):
    daemon = DaemonProcess(tmp_path / "device").start()
    body = {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": TEXT}], "user": ANN}
    with daemon.client() as client:
        assert client.post("/v1/chat/completions", json=body).status_code == 200
    assert psutil.Process(daemon.pid).rlimit(psutil.RLIMIT_CORE) == (0, 0)  # a core file would hold texts
    if not running:
        assert daemon.stop() == 0
    (daemon.data / "outrider.db.schema-3").write_bytes(b"an older database")
    shown = outrider(daemon, "erase", "--subject", ANN, stdin="y\n")
    assert "requests" in shown.stdout
    assert "erased" in shown.stdout
    assert "outrider.db.schema-3" in shown.stderr
    assert as_json(daemon, "requests", "list") == []
    outrider(daemon, "erase", "--subject", "", "--yes", code=2)
    (daemon.data / "outrider.db.schema-3").unlink()
    assert daemon.stop() == 0
    found = needles.places([tmp_path], keys.load(daemon.data, {}).material, [*needles.forms(TEXT), *needles.forms(ANN)])
    assert found == []


def test_nothing_of_a_purged_queue_is_left(api):
    record = api.settled(api.chat(f"unsure {TEXT}", user=ANN).json()["outrider"]["request_id"])
    assert record["cloud_answer"]["text"] == f"cloud: {TEXT}"
    api.call(api.storage.db.checkpoint())
    assert "outrider.db decrypted" in leftovers(api, TEXT)
    assert as_json(api.user, "queue", "purge", "--yes", "--unfetched")["purged"] == 1
    assert leftovers(api, TEXT, ANN) == []


def test_nothing_is_left_when_its_time_has_passed(api):
    ask_much(api)
    api.call(api.storage.db.checkpoint())
    assert "outrider.db decrypted" in leftovers(api, TEXT)
    # What somebody said of an answer is kept on purpose, and what waits for a person.
    for row in api.get("/v1/queue?state=awaiting_approval").json()["data"]:
        api.post(f"/v1/queue/{row['id']}/cancel")
    api.skew_ms = 120 * DAY
    storage = api.storage
    api.call(storage.maintain(time.time_ns() // 1_000_000 + api.skew_ms))
    api.call(storage.db.write(lambda connection: connection.execute("DELETE FROM feedback").rowcount))
    api.call(storage.db.checkpoint())
    assert leftovers(api, TEXT, ANN) == []


def test_a_saved_prefix_is_gone_as_text_and_as_token_ids(api):
    storage = api.storage
    ids = [31337, 42, 90125, 7, 5150]
    raw = array.array("i", ids).tobytes() + TEXT.encode()
    prefix = StoredPrefix(
        name="brief", model=MODEL, model_digest="d" * 64, fingerprint="f", tokens=5, parts=((0, 5, len(raw)),),
        created_at_ms=0,
    )  # fmt: skip

    async def save():
        async def pieces():
            yield raw

        return await storage.prefix_store(1 << 20).write(prefix, pieces())

    assert api.call(save())
    key, wanted = keys.load(api.folder / "data", {}).material, needles.forms(TEXT, ids)
    (place,) = needles.places([api.folder], key, wanted)
    assert place.endswith("decrypted")
    for form in (needles.forms(TEXT, ids)[7], TEXT.encode()):
        assert needles.places([api.folder], key, [form])
    assert as_json(api.user, "prefixes", "purge", "--yes")["purged"] == 1
    assert needles.places([api.folder], key, wanted) == []


def test_whoever_waits_for_what_is_erased_is_told(api, cloud):
    """A caller that waits for the late answer, one that watches, one that follows a response in the background."""
    cloud.default = status(503)
    found = {}

    def wait():
        found["wait"] = api.chat(f"unsure {TEXT}", user=ANN, outrider={"on_low_confidence": "wait"})

    def watch(path):
        with api.client() as client, client.stream("GET", path) as response:
            found[path] = (response.status_code, "".join(response.iter_text()))

    queued = api.chat(f"unsure {TEXT}", user=ANN).json()["outrider"]["request_id"]
    with client_of(api) as client:
        running = client.responses.create(model=MODEL, input=f"hang {TEXT}", user=ANN, background=True).id
    paths = (f"/v1/requests/{queued}/events", f"/v1/responses/{running}?stream=true")
    waiting = [threading.Thread(target=wait), *(threading.Thread(target=watch, args=(path,)) for path in paths)]
    for thread in waiting:
        thread.start()
    while len(api.get("/v1/requests").json()["data"]) < 3 or api.call(watchers(api)) < 3:
        time.sleep(0.01)
    assert api.post("/v1/erase", {"subject": ANN}).json()["requests"] == 3
    for thread in waiting:
        thread.join(30)
    assert (found["wait"].status_code, found["wait"].json()["error"]["code"]) == (404, "not_found")
    assert "not_found" in found[paths[0]][1]
    assert '"status":"cancelled"' in found[paths[1]][1]


async def watchers(api):
    return len(api.storage.journal._changes._watchers)
