"""Requests, events, the queue and its verbs over HTTP; what the user token may not do."""

import json
import threading

import msgspec
import pytest
from fakes.api_server import ADMIN, USER, chat, served, target_at
from fakes.cloud import cloud_in_thread

from agent.engine.supervisor import WorkerState
from agent.records import RequestRecord
from agent.types import EgressPolicy


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    with served(tmp_path_factory.mktemp("queue") / "data", heartbeat_s=0.05) as server:
        yield server


@pytest.fixture(scope="module")
def cloud():
    with cloud_in_thread() as server:
        yield server


@pytest.fixture(scope="module")
def joined(tmp_path_factory, cloud):
    """A target under approve: a person releases each row."""
    targets = (target_at(cloud.base_url, EgressPolicy.APPROVE),)
    with served(tmp_path_factory.mktemp("joined") / "data", targets=targets) as server:
        yield server


def asked(api, said="unsure", **fields):
    return api.chat(said, **fields).json()["outrider"]["request_id"]


def row_of(api, request_id):
    return api.get(f"/v1/queue/{request_id}").json()


# --- requests -------------------------------------------------------------------------


def test_a_request_shows_both_answers_and_the_trace(joined):
    request_id = asked(joined, "unsure about both")
    row = row_of(joined, request_id)
    assert joined.post("/v1/queue/release", {"ids": [row["id"]], "target": "main"}).json()["released"] == 1
    record = joined.settled(request_id)
    assert record["object"] == "outrider.request"
    assert (record["state"], record["answered_by"]) == ("resolved", "main")
    assert record["generation"]["text"] == "echo: unsure about both"
    assert record["generation"]["tokens"] == []
    assert record["cloud_answer"]["text"] == "cloud: unsure about both"
    assert record["decision"]["trace"]
    assert record["confidence"]["signals"]["tokens"] == 4
    assert record["escalation"]["lease"] is None
    record.pop("object")
    assert msgspec.convert(record, RequestRecord).id == request_id


PICTURE = [
    {"type": "text", "text": "What is this? é"},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}},
]


def test_a_picture_goes_to_the_target_as_it_came(joined):
    answer = joined.chat("", messages=[{"role": "user", "content": PICTURE}])
    assert answer.status_code == 202
    request_id = answer.json()["outrider"]["request_id"]
    assert answer.json()["outrider"]["reason"] == "unsupported_media"
    row = row_of(joined, request_id)
    assert row["reason"] == "unsupported_media"
    with joined.client(ADMIN) as client:
        sent = client.get(f"/v1/queue/{row['id']}", params={"as_sent": 1, "target": "main"}).json()
    assert sent["messages"] == [{"role": "user", "content": PICTURE}]
    assert not [asked for asked in joined.engine.asked if asked.has_media], "the local model is not asked"
    joined.post("/v1/queue/release", {"ids": [row["id"]], "target": "main"})
    assert joined.settled(request_id)["state"] == "resolved"


def test_a_picture_without_anybody_to_ask_is_refused_with_the_reason(api, joined):
    for server, fields in ((api, {}), (joined, {"outrider": {"route_mode": "local_only"}})):
        for stream in (False, True):
            refused = server.chat("", messages=[{"role": "user", "content": PICTURE}], stream=stream, **fields)
            assert refused.status_code == 400
            assert refused.json()["error"]["code"] == "unsupported_media"
            assert "text only" in refused.json()["error"]["message"]


def test_asking_for_a_late_answer_counts_as_fetching_it(joined):
    request_id = asked(joined, "unsure and late")
    joined.post("/v1/queue/release", {"ids": [request_id], "target": "main"})
    joined.settled(request_id)
    joined.skew_ms = 25 * 3_600_000
    try:
        joined.call(joined.storage.maintain(joined.call(_now(joined))))
        record = joined.get(f"/v1/requests/{request_id}").json()
        assert (record["state"], record["request"], record["cloud_answer"]) == ("resolved", None, None)
    finally:
        joined.skew_ms = 0


async def _now(api):
    import time

    return time.time_ns() // 1_000_000 + api.skew_ms


def test_the_list_of_requests_goes_page_by_page(api):
    ids = [asked(api, f"hello {number}") for number in range(3)]
    first = api.get("/v1/requests?limit=2").json()
    assert [record["id"] for record in first["data"]] == [ids[2], ids[1]]
    assert first["has_more"] is True
    assert first["data"][0]["request"] is None
    second = api.get(f"/v1/requests?limit=1&before={ids[1]}").json()
    assert [record["id"] for record in second["data"]] == [ids[0]]
    assert {r["state"] for r in api.get("/v1/requests?state=answered").json()["data"]} == {"answered"}


@pytest.mark.parametrize(
    ("path", "code", "param"),
    [
        ("/v1/requests?limit=0", "invalid_value", "limit"),
        ("/v1/requests?limit=1001", "invalid_value", "limit"),
        ("/v1/requests?limit=ten", "invalid_type", "limit"),
        ("/v1/requests?state=done", "invalid_value", "state"),
        ("/v1/requests?colour=red", "unknown_parameter", "colour"),
        ("/v1/requests?limit=1&limit=2", "contradiction", "limit"),
        ("/v1/queue?state=running", "invalid_value", "state"),
        ("/v1/queue?offset=1", "unknown_parameter", "offset"),
        ("/v1/egress?since_ms=-1", "invalid_type", "since_ms"),
    ],
)
def test_query_parameters_are_checked(api, path, code, param):
    response = api.get(path)
    assert response.status_code == 400
    assert (response.json()["error"]["code"], response.json()["error"]["param"]) == (code, param)


@pytest.mark.parametrize("path", ["/v1/requests/nothing", "/v1/requests/nothing/events", "/v1/queue/nothing"])
def test_what_is_not_there_is_404(api, path):
    response = api.get(path)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


# --- events ---------------------------------------------------------------------------


def test_events_until_the_request_is_settled(joined):
    request_id = asked(joined, "unsure with events")
    states = []
    with joined.client() as client, client.stream("GET", f"/v1/requests/{request_id}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line.startswith("data: {"):
                states.append(json.loads(line[6:])["state"])
                if len(states) == 1:
                    joined.post("/v1/queue/release", {"ids": [request_id], "target": "main"})
            elif line.startswith("data: "):
                assert line == "data: [DONE]"
    assert states[0] == "queued"
    assert states[-1] == "resolved"
    assert set(states) == {"queued", "resolved"}


def test_events_of_a_quiet_request_are_comments_and_end_with_the_caller(api):
    request_id = asked(api)
    with api.client() as client, client.stream("GET", f"/v1/requests/{request_id}/events") as response:
        lines = (line for line in response.iter_lines() if line)
        assert json.loads(next(lines)[6:])["state"] == "queued"
        assert next(lines) == ": waiting"
    row = row_of(api, request_id)
    assert api.post(f"/v1/queue/{row['id']}/cancel").json()["state"] == "cancelled"


def test_events_of_a_settled_request_end_at_once(api):
    response = api.get(f"/v1/requests/{asked(api, 'hello')}/events")
    assert [line[:6] for line in response.text.split("\n\n") if line] == ["data: ", "data: "]


# --- the queue ------------------------------------------------------------------------


def test_the_queue_shows_rows_and_counts(api):
    request_id = asked(api, "unsure row")
    listing = api.get("/v1/queue?limit=1000&state=awaiting_approval").json()
    row = listing["data"][-1]
    assert (row["request_id"], row["reason"], row["target"]) == (request_id, "no_target", None)
    assert listing["counts"]["awaiting_approval"]["rows"] == len(listing["data"])
    assert listing["oldest_ms"] <= row["created_at_ms"]
    assert row_of(api, row["id"]) == row_of(api, request_id) == row
    page = api.get("/v1/queue?limit=1").json()
    assert page["has_more"] is (len(api.get("/v1/queue?limit=1000").json()["data"]) > 1)


def test_as_sent_is_exactly_what_then_leaves(joined, cloud):
    request_id = asked(joined, "unsure bytes", temperature=0.5, max_tokens=9)
    shown = joined.get(f"/v1/queue/{request_id}?as_sent=1")
    assert shown.headers["content-type"] == "application/json"
    assert shown.headers["x-outrider-target"] == "main"
    joined.post("/v1/queue/release", {"ids": [request_id], "target": "main"})
    joined.settled(request_id)
    assert cloud.chats[-1].body == shown.content
    last = joined.get("/v1/egress?limit=1").json()
    assert (last["data"][0]["request_id"], last["data"][0]["bytes"]) == (request_id, len(shown.content))
    assert last["totals"]["by_target"]["main"]["rows"] == last["totals"]["rows"]


def test_as_sent_needs_a_target(api):
    response = api.get(f"/v1/queue/{asked(api)}?as_sent=1")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "unknown_target")
    response = api.get(f"/v1/queue/{asked(api)}?as_sent=1&target=elsewhere")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "target")


def test_cancel_retry_and_purge(api):
    request_id = asked(api, "unsure verbs")
    row = row_of(api, request_id)
    assert api.post(f"/v1/queue/{row['id']}/cancel").json()["state"] == "cancelled"
    assert api.get(f"/v1/requests/{request_id}").json()["state"] == "cancelled"
    again = api.post(f"/v1/queue/{row['id']}/cancel")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "wrong_state")
    assert again.headers["x-should-retry"] == "false"
    # Nobody had released it: it waits for a person again.
    assert api.post(f"/v1/queue/{row['id']}/retry", {}).json()["state"] == "awaiting_approval"
    assert api.post(f"/v1/queue/{row['id']}/retry").status_code == 409
    assert api.post(f"/v1/queue/{row['id']}/cancel").status_code == 200
    assert api.post("/v1/queue/purge", {"states": ["cancelled"]}).json()["purged"] >= 1
    assert api.get(f"/v1/requests/{request_id}").status_code == 404
    assert api.post("/v1/queue/purge", {"states": ["pending"]}).json()["error"]["param"] == "states"


def test_drain_returns_at_once_with_the_counts(joined):
    assert joined.post("/v1/queue/drain").json()["counts"]["pending"]["rows"] == 0


@pytest.mark.parametrize(
    "body",
    [
        {"target": "main"},
        {"target": "main", "ids": ["x"], "all": True},
        {"target": "main", "ids": [], "all": True},
        {"target": "elsewhere", "all": True},
        {"target": "main", "ids": [1]},
        {"target": "main", "ids": "x"},
        {"target": "main", "all": True, "force": True},
        {"target": 1, "all": True},
    ],
)
def test_release_says_exactly_what(joined, cloud, body):
    request_id = asked(joined, "unsure and kept")
    sent = len(cloud.chats)
    assert joined.post("/v1/queue/release", body).status_code == 400
    assert row_of(joined, request_id)["state"] == "awaiting_approval"
    assert len(cloud.chats) == sent


def test_release_all(joined):
    request_ids = [asked(joined, f"unsure {number}") for number in range(3)]
    assert joined.post("/v1/queue/release", {"all": True}).json()["released"] >= 3
    assert {joined.settled(request_id)["state"] for request_id in request_ids} == {"resolved"}


def test_a_target_that_comes_later_gets_nothing_by_itself(tmp_path, cloud):
    with served(tmp_path / "data") as api:
        early = asked(api, "unsure early")
        sent = len(cloud.chats)
        api.targets = (target_at(cloud.base_url),)
        assert api.post("/v1/admin/reload").json() == {"targets": ["main"], "egress": "allow"}
        late = asked(api, "unsure late")
        assert api.settled(late)["state"] == "resolved"
        assert [chat.last_user_text for chat in cloud.chats[sent:]] == ["unsure late"]
        assert row_of(api, early)["state"] == "awaiting_approval"


# --- rights ---------------------------------------------------------------------------

ADMIN_VERBS = [
    "/v1/queue/release", "/v1/queue/purge", "/v1/queue/drain", "/v1/queue/{id}/retry", "/v1/queue/{id}/cancel",
    "/v1/admin/reload",
]  # fmt: skip


@pytest.mark.parametrize("path", ADMIN_VERBS)
def test_the_user_token_may_not_use_admin_verbs(api, path):
    request_id = asked(api, "unsure rights")
    row = row_of(api, request_id)
    body = {"ids": [row["id"]], "target": "main"} if path.endswith("release") else {}
    response = api.post(path.format(id=row["id"]), body, token=USER)
    assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden")
    assert row_of(api, request_id) == row


@pytest.mark.parametrize("path", ADMIN_VERBS)
def test_admin_verbs_are_not_done_by_get(api, path):
    response = api.get(path.format(id="x"), token=ADMIN)
    assert response.status_code in {404, 405}


def test_the_admin_token_may_do_what_the_user_may(api):
    assert api.chat("hello", token=ADMIN).status_code == 200
    assert api.get("/v1/queue", token=ADMIN).status_code == 200


# --- operations -----------------------------------------------------------------------


def test_ready_and_not_ready(api):
    ready = api.get("/readyz")
    assert (ready.status_code, ready.json()["ready"], ready.json()["problems"]) == (200, True, [])
    api.engine.state = WorkerState.BACKOFF
    try:
        response = api.get("/readyz")
        assert (response.status_code, response.json()["ready"]) == (503, False)
        assert response.json()["problems"] == ["model small is backoff"]
    finally:
        api.engine.state = WorkerState.READY


def test_metrics_are_text_with_counts(api):
    asked(api, "unsure count")
    rows = api.get("/v1/queue").json()["counts"]["awaiting_approval"]["rows"]
    response = api.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert f'outrider_queue_rows{{state="awaiting_approval"}} {rows}' in response.text.splitlines()
    assert 'outrider_worker_ready{model="small"} 1' in response.text.splitlines()


def test_many_callers_at_once(api):
    failed = []

    def call(number):
        response = api.chat(f"hello {number}", stream=number % 2 == 0)
        if response.status_code != 200 or f"{number}" not in response.text:
            failed.append(response.text)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert chat("x")["messages"]
