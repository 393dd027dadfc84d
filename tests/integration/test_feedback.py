"""From an answer to what people and targets say of it, to a monitor that tightens, and back into examples."""

import json
import os
from types import SimpleNamespace

import pytest
from fakes.api_server import ADMIN, USER, chat, served
from fakes.command_line import as_json, outrider

from agent import executable
from agent.api.feedback_routes import is_drawn
from agent.confidence.monitor import Monitor

LABELS = ["refund", "card lost", "hours"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("feedback")
    with served(folder / "data") as server:
        address = {"pid": os.getpid(), "started": executable.started(os.getpid()), "url": server.url}
        (folder / "data" / "daemon.json").write_text(json.dumps(address))
        for name, token in (("token", USER), ("admin-token", ADMIN)):
            (folder / "data" / name).write_text(token)
        config = folder / "outrider.toml"
        config.write_text(f'data_dir = "{folder / "data"}"\n')
        server.user = SimpleNamespace(config=config)
        outrider(server.user, "tasks", "new", "mail", *(part for one in LABELS for part in ("--label", one)))
        yield server


def post(server, body, token=USER):
    with server.client(token) as client:
        return client.post("/v1/feedback", json=body)


def classified(server, text, **fields):
    with server.client() as client:
        return client.post("/v1/classify", json={"task": "mail", "input": text, **fields}).json()


def test_any_caller_may_say_that_an_answer_was_wrong(server):
    told = classified(server, "where is my money?")
    other = next(label for label in LABELS if label != told["label"])
    body = {"request_id": told["outrider"]["request_id"], "verdict": "corrected", "answer": other}
    found = post(server, body).json()
    assert (found["right"], found["origin"], found["task"], found["propensity"]) == (False, "caller", "mail", None)
    assert found["said"]["input"] == "where is my money?"
    approved = post(server, {"request_id": body["request_id"], "verdict": "approved"}).json()
    assert (approved["right"], approved["said"]["right_answer"]) == (True, told["label"])


@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        ({"verdict": "fine"}, 400, "verdict"),
        ({"verdict": "corrected"}, 400, "needs the right answer"),
        ({"verdict": "labelled", "answer": "hour"}, 400, "did you mean 'hours'"),
        ({"verdict": "approved", "answer": "hours"}, 400, "takes no answer"),
        ({"verdict": "skipped", "drawn": 0.5}, 400, "belongs to a review"),
        ({"verdict": "skipped", "review": True}, 403, "admin token"),
        ({"verdict": "skipped", "request_id": "nothing"}, 404, "no request"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(server, change, status, word):
    request_id = classified(server, "when do you open?")["outrider"]["request_id"]
    refused = post(server, {"request_id": request_id, **change})
    assert refused.status_code == status, refused.text
    assert word in refused.json()["error"]["message"]


def test_a_correction_that_corrects_nothing_is_an_approval(server):
    told = classified(server, "hello there")
    body = {"request_id": told["outrider"]["request_id"], "verdict": "corrected", "answer": told["label"]}
    assert "approve it" in post(server, body).json()["error"]["message"]


def test_a_person_answers_in_the_target_s_place_and_nothing_leaves(server):
    with server.client() as client:
        body = chat("what is unsure?", outrider={"egress": "approve", "route_mode": "cloud_first"})
        asked = client.post("/v1/chat/completions", json=body)
    request_id = asked.json()["outrider"]["request_id"]
    listed = as_json(server.user, "review", "--list")
    assert request_id in [one["request_id"] for one in listed]
    told = as_json(server.user, "review", request_id, "--label", "This is so.")
    assert (told["resolved"], told["origin"]) == (True, "review")
    record = server.get(f"/v1/requests/{request_id}").json()
    assert (record["state"], record["answered_by"]) == ("resolved", "person")
    assert record["cloud_answer"]["text"] == "This is so."
    assert (record["escalation"]["state"], record["escalation"]["reason"]) == ("succeeded", "answered_by_person")
    assert server.get("/v1/egress").json()["data"] == []
    assert "only a row that waits" not in post(server, {"request_id": request_id, "verdict": "skipped"}).text
    assert request_id not in [one["request_id"] for one in as_json(server.user, "review", "--list")]


def test_a_person_goes_through_what_waits_one_by_one(server, monkeypatch):
    monkeypatch.setattr("agent.cli.review.sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    outrider(server.user, "tasks", "new", "walked", *(part for one in LABELS for part in ("--label", one)), "--json")
    own = {"egress": "approve", "route_mode": "cloud_first"}
    with server.client() as client:
        for text in ("which one is it?", "and this one?", "nobody can say", "left for tomorrow"):
            body = {"task": "walked", "input": text, "outrider": own}
            assert client.post("/v1/classify", json=body).status_code in {200, 202}
    waiting = as_json(server.user, "review", "--task", "walked", "--list")
    assert len(waiting) == 4
    drafts = [one["answer"] for one in waiting]
    other = next(label for label in LABELS if label != drafts[0])
    said = [str(waiting[0]["labels"].index(other) + 1), "hour", "y", "", "q"]
    result = outrider(server.user, "review", "--task", "walked", stdin="\n".join(said) + "\n")
    assert "4 answers to look at" in result.stderr
    assert "'hour' is none of the labels" in result.stderr
    for one, verdict in zip(waiting, ("corrected", "approved", "skipped"), strict=False):
        assert f"{one['request_id']}: {verdict}" in result.stderr
    for one, answer in ((waiting[0], other), (waiting[1], drafts[1])):
        record = server.get(f"/v1/requests/{one['request_id']}").json()
        assert (record["answered_by"], record["cloud_answer"]["text"]) == ("person", answer)
    left = [one["request_id"] for one in as_json(server.user, "review", "--task", "walked", "--list")]
    assert waiting[3]["request_id"] in left
    assert not {one["request_id"] for one in waiting[:2]} & set(left)


def test_a_random_draw_of_what_was_served_is_the_same_for_all(server):
    ids = [classified(server, f"number {number}")["outrider"]["request_id"] for number in range(12)]
    drawn = next((one for one in ids if is_drawn(one, 0.5)), None)
    other = next((one for one in ids if not is_drawn(one, 0.5)), None)
    if other is not None:
        refused = post(server, {"request_id": other, "verdict": "skipped", "review": True, "drawn": 0.5}, ADMIN)
        assert "not in the draw" in refused.json()["error"]["message"]
    if drawn is not None:
        taken = post(
            server, {"request_id": drawn, "verdict": "labelled", "answer": "hours", "review": True, "drawn": 0.5}, ADMIN
        )
        assert taken.json()["propensity"] == 0.5


def test_what_was_said_is_exported_as_examples_and_as_training_data(server, tmp_path):
    told = classified(server, "my wallet is gone")
    post(server, {"request_id": told["outrider"]["request_id"], "verdict": "labelled", "answer": "card lost"})
    path = tmp_path / "said.jsonl"
    outrider(server.user, "tasks", "export", "mail", "-o", str(path))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    (mine,) = [line for line in lines if line["input"] == "my wallet is gone"]
    assert (mine["label"], mine["origin"]) == ("card lost", "caller")
    outrider(server.user, "tasks", "export", "mail", "--finetune", "-o", str(path))
    chats = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
    assert [message["role"] for message in chats[0]] == ["system", "user", "assistant"]
    assert any(messages[-1]["content"] == "card lost" for messages in chats)


def test_the_monitor_is_kept_and_goes_with_its_task(server):
    server.tasks.book.monitors.put([Monitor(task="mail", calibration="c", inputs=5)])
    server.tasks.book.monitors._changed.add("mail")
    server.call(server.tasks.save())
    stored = server.call(server.storage.tasks.all())
    assert len(stored.monitors) == 1
    server.call(server.tasks.forget("mail"))
    assert server.call(server.storage.tasks.all()).monitors == ()
    assert server.call(server.storage.feedback.list("mail")) == []
