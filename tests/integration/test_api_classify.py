"""Choosing a label over real HTTP: shapes, verdicts, the queue, the journal."""

import asyncio

import pytest
from fakes import cloud as cloud_module
from fakes.api_server import MODEL, served, target_at
from fakes.cloud import cloud_in_thread

from agent.label_likeness import ENCODER

LABELS = ["refund", "card lost", "weather"]


@pytest.fixture(autouse=True)
def alone(api):
    """No encoder: the language model is asked alone."""
    api.engine.embeds = ""
    yield
    api.engine.embeds = ENCODER


@pytest.fixture
def cloud():
    with cloud_in_thread() as server:
        yield server


@pytest.fixture
def joined(tmp_path, cloud):
    with served(tmp_path / "data", targets=(target_at(cloud.base_url),)) as server:
        yield server


def by_label(found):
    return {one["label"]: one["probability"] for one in found["labels"]}


def test_a_sure_choice_has_every_label_in_the_callers_order(api):
    response = api.classify("I want a refund now", LABELS)
    found = response.json()
    assert response.status_code == 200
    assert (found["object"], found["label"], found["model"]) == ("classification", "refund", MODEL)
    assert [one["label"] for one in found["labels"]] == LABELS
    assert sum(by_label(found).values()) == pytest.approx(1)
    assert found["probability"] == max(by_label(found).values()) > 0.9
    assert found["margin"] == pytest.approx(6.0, abs=0.01)
    assert 0 < found["mass"] <= 1
    told = found["outrider"]
    assert (told["decision"], told["source"], told["calibrated"]) == ("answered", "local", False)
    assert told["confidence"] > 0.9
    assert response.headers["x-outrider-decision"] == "answered"


def test_the_order_of_labels_changes_nothing(api):
    one = api.classify("the card lost its shine, a refund", LABELS).json()
    other = api.classify("the card lost its shine, a refund", LABELS[::-1]).json()
    assert by_label(one) == by_label(other)
    assert one["label"] == other["label"]
    assert one["outrider"]["confidence"] == other["outrider"]["confidence"]


def test_a_label_liked_without_content_is_not_favoured(api):
    """The scripted engine likes short labels; nothing in the text means that all are equal."""
    found = api.classify("tell me something", LABELS).json()
    assert list(by_label(found).values()) == pytest.approx([1 / 3] * 3)
    assert found["outrider"]["confidence"] == pytest.approx(0)
    assert found["outrider"]["decision"] == "queued"


def test_content_free_scores_are_asked_once(api):
    labels = ["alpha", "beta"]
    api.classify("alpha", labels)
    before = len(api.engine.asked)
    api.classify("beta", labels[::-1])
    assert len(api.engine.asked) == before + 1


def test_a_sure_choice_is_journaled_behind_the_answer(api):
    found = api.classify("a refund please", LABELS).json()
    request_id = found["outrider"]["request_id"]
    api.call(asyncio.sleep(0.2))
    record = api.get(f"/v1/requests/{request_id}").json()
    assert (record["state"], record["answered_by"]) == ("answered", "local")
    assert record["request"]["kind"] == "classify"
    assert record["generation"]["text"] == "refund"


def test_a_key_makes_it_durable_first_and_replays(api):
    headers = {"idempotency-key": "classify-1"}
    one = api.classify("a refund please", LABELS, headers=headers)
    again = api.classify("a refund please", LABELS, headers=headers)
    assert again.headers["x-outrider-replayed"] == "true"
    assert again.json() == one.json()
    assert api.classify("another", LABELS, headers=headers).status_code == 422


def test_unsure_is_queued_and_the_target_chooses_a_label(joined, cloud):
    cloud.script(cloud_module.ok("**Card Lost**."))
    response = joined.classify("unsure what happened", LABELS)
    told = response.json()["outrider"]
    assert told["decision"] == "queued"
    record = joined.settled(told["request_id"])
    assert (record["state"], record["cloud_answer"]["text"]) == ("resolved", "card lost")
    asked = cloud.chats[0].last_user_text
    assert all(label in asked for label in LABELS)
    assert "exactly one" in asked


def test_a_reply_that_is_no_label_leaves_the_draft(joined, cloud):
    cloud.script(cloud_module.ok("It is about a refund, I think."))
    told = joined.classify("unsure what happened", LABELS).json()["outrider"]
    record = joined.settled(told["request_id"])
    assert record["state"] == "unresolved"
    assert "none of the labels" in record["escalation"]["last_error"] + record["escalation"]["reason"]


def test_wait_gives_the_targets_label(joined, cloud):
    cloud.script(cloud_module.ok("weather"))
    found = joined.classify("unsure", LABELS, outrider={"on_low_confidence": "wait"}).json()
    assert (found["label"], found["outrider"]["source"], found["probability"]) == ("weather", "main", None)


def test_abstain_has_no_label(api):
    found = api.classify("unsure", LABELS, outrider={"on_low_confidence": "abstain"}).json()
    assert found["label"] is None
    assert "Uncertain" in found["refusal"]


def test_an_engine_that_is_busy_is_429(api):
    response = api.classify("busy", LABELS)
    assert (response.status_code, response.json()["error"]["code"]) == (429, "busy")


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"labels": ["one"]}, "labels", "invalid_value"),
        ({"labels": "one"}, "labels", "invalid_type"),
        ({"labels": None}, "labels", "missing_required_parameter"),
        ({"labels": ["one", "One"]}, "labels", "invalid_value"),
        ({"labels": ["one", ""]}, "labels[1]", "invalid_value"),
        ({"labels": ["one", " two"]}, "labels[1]", "invalid_value"),
        ({"labels": ["one", "t\nwo"]}, "labels[1]", "invalid_value"),
        ({"labels": ["one", 2]}, "labels[1]", "invalid_type"),
        ({"labels": [str(n) for n in range(501)]}, "labels", "invalid_value"),
        ({"input": None}, "input", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": "x"}]}, "messages", "invalid_value"),
        ({"input": None, "messages": [{"role": "system", "content": "x"}]}, "messages", "invalid_value"),
        ({"stream": True}, "stream", "unsupported_parameter"),
        ({"temperature": 1}, "temperature", "unknown_parameter"),
        ({"model": "nowhere"}, "model", "model_not_found"),
    ],
)
def test_what_is_wrong_is_named(api, changes, param, code):
    body = {"labels": LABELS, "said": "x", **changes}
    with api.client() as client:
        body = {"model": MODEL, "labels": LABELS, "input": "x", **changes}
        error = client.post("/v1/classify", json=body).json()["error"]
    assert (error["param"], error["code"]) == (param, code)


def test_messages_of_the_callers_own_are_scored_as_they_are(api):
    messages = [{"role": "system", "content": "Sort."}, {"role": "user", "content": "a refund"}]
    found = api.classify(None, LABELS, messages=messages).json()
    assert found["label"] == "refund"
    assert [message.content for message in api.engine.asked[-1].messages] == ["Sort.", "a refund"]
