"""Served answers that are drawn go up to be compared; when too many differ, the threshold tightens by itself."""

import json
import time

import msgspec
import pytest
from fakes.api_server import ADMIN, served, target_at
from fakes.cloud import cloud_in_thread, hang

from agent.cli.demo.way_out import WayOut, stand_in
from agent.confidence.calibration import Calibration, CalibrationKey, Report
from agent.confidence.certify import Certificate
from agent.confidence.maps import ProbabilityMap
from agent.errors import WrongState
from agent.types import EgressPolicy

TASK = """
name = "mail"
labels = ["refund", "card lost", "hours"]
quality_sample = 1.0
"""


def always(label):
    """A target that gives one label whatever it is asked."""

    def answer(method, path, headers, body):
        reply = stand_in({})(method, path, headers, body)
        return reply._replace(body=reply.body.replace(b"There is no canned answer to this.", label.encode()))

    return answer


@pytest.fixture
def way_out():
    server = WayOut(always("hours"))
    server.open()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def api(tmp_path, way_out):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mail.toml").write_text(TASK)
    with served(tmp_path / "data", targets=(target_at(way_out.url, EgressPolicy.ALLOW),)) as server:
        yield server


def certify(api):
    """Put a calibration in under which every answer is served."""
    with api.client() as client:
        told = client.post("/v1/tasks/mail/signals", json={"inputs": ["some text"], "signal": "answer"}).json()
    report = Report(
        examples=100, right=100, no_signal=0, served=100, errors=0, coverage_low=0.9, coverage_high=1.0,
        expected_error=0.0, expected_error_floor=0.0,
    )  # fmt: skip
    made = Calibration(
        id="c1", task="mail", key=msgspec.convert(told["rows"][0]["key"], CalibrationKey), map=ProbabilityMap(),
        threshold=0.0, target="accuracy", value=0.95, certificate=Certificate.PAC, delta=0.1, sentence="", report=report,
    )  # fmt: skip
    api.call(api.tasks.certify(made))


def classify(api, text, **fields):
    with api.client() as client:
        return client.post("/v1/classify", json={"task": "mail", "input": text, **fields}).json()


def monitor_when(api, holds):
    until = time.monotonic() + 20
    while time.monotonic() < until:
        found = api.get("/v1/tasks/mail").json()["monitor"]
        if holds(found):
            return found
        time.sleep(0.02)
    raise AssertionError(found)


def test_drawn_answers_are_compared_and_the_threshold_tightens_by_itself(api, way_out):
    certify(api)
    told = [classify(api, f"when do you open, number {number}?") for number in range(7)]
    assert {one["outrider"]["guarantee"] for one in told} == {"accuracy 0.95 (pac 0.9)"}
    assert {one["outrider"]["decision"] for one in told} == {"answered"}
    wrong = {one["label"] for one in told} != {"hours"}
    assert wrong, "the scripted model is expected to say something else"
    found = monitor_when(api, lambda monitor: monitor["tightened"])
    assert [alarm["kind"] for alarm in found["alarms"]] == ["quality"]
    until = time.monotonic() + 20
    while time.monotonic() < until and not (stored := api.call(api.storage.tasks.all()).monitors):
        time.sleep(0.01)  # nobody saves here every half minute: whoever is killed now has it on disk
    assert msgspec.msgpack.decode(stored[0])["tightened"]
    record = api.get(f"/v1/requests/{told[0]['outrider']['request_id']}").json()
    assert (record["state"], record["answered_by"]) == ("answered", "local")
    assert (record["escalation"]["purpose"], record["decision"]["propensity"]) == ("quality_sample", 1.0)
    with api.client(ADMIN) as client:
        said = client.get("/v1/feedback?task=mail").json()["data"]
    assert {(one["origin"], one["right"], one["propensity"]) for one in said} == {("quality_sample", False, 1.0)}
    assert {one["said"]["right_answer"] for one in said} == {"hours"}
    after = classify(api, "and on sunday?", outrider={"on_low_confidence": "abstain"})["outrider"]
    assert (after["decision"], after["guarantee"]) == ("uncertain", "none: the monitor raised an alarm")
    assert 'outrider_monitor_alarms_total{kind="quality",task="mail"}' in api.get("/metrics").text


def test_what_left_to_be_checked_is_in_the_log_when_its_response_is_deleted(tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mail.toml").write_text(TASK)
    with cloud_in_thread() as cloud:
        silent = msgspec.structs.replace(target_at(cloud.base_url), timeout_s=2.0)
        cloud.script(hang())
        with served(tmp_path / "data", targets=(silent,)) as api:
            certify(api)
            request_id = classify(api, "when do you open?")["outrider"]["request_id"]
            while not cloud.chats:
                time.sleep(0.01)
            with pytest.raises(WrongState, match="being checked"):
                api.call(api.storage.journal.delete(request_id))
            with api.client() as client:
                assert client.delete(f"/v1/responses/resp_{request_id}").json()["deleted"]
            assert {line["request_id"] for line in api.get("/v1/egress").json()["data"]} == {request_id}


def test_what_is_measured_is_no_traffic(api):
    certify(api)
    with api.client() as client:
        body = {"input": "when do you open?"}
        assert client.post("/v1/tasks/mail/trials", json=body).json()["calibrated"]
    classify(api, "when do you open?", metadata={"outrider.evaluation": "1"})
    assert api.get("/v1/tasks/mail").json()["monitor"]["inputs"] == 0
    classify(api, "when do you open?")
    assert api.get("/v1/tasks/mail").json()["monitor"]["inputs"] == 1


def test_a_drawn_answer_is_counted_once_whoever_judges_it_and_how_often(api):
    certify(api)
    told = classify(api, "when do you open?", outrider={"egress": "never"})
    said = {"request_id": told["outrider"]["request_id"], "review": True, "drawn": 1}
    with api.client(ADMIN) as client:
        for verdict in ({"verdict": "skipped"}, {"verdict": "labelled", "answer": "hours"}, {"verdict": "approved"}):
            assert client.post("/v1/feedback", json=said | verdict).status_code == 200
    assert api.get("/v1/tasks/mail").json()["monitor"]["checked"] == 1


def test_what_may_not_leave_is_never_drawn(api, way_out):
    certify(api)
    for fields in ({"egress": "never"}, {"egress": "approve"}, {"route_mode": "local_only"}):
        told = classify(api, "when do you open?", outrider=fields)
        record = api.get(f"/v1/requests/{told['outrider']['request_id']}").json()
        assert record["decision"]["propensity"] is None, fields
        assert record["escalation"] is None
    assert way_out.received == []


def test_a_target_s_answer_to_what_was_escalated_is_kept_and_not_counted(api, way_out):
    certify(api)
    told = classify(api, "a question for others", outrider={"route_mode": "cloud_first", "on_low_confidence": "wait"})
    assert told["label"] == "hours"
    with api.client(ADMIN) as client:
        (said,) = client.get("/v1/feedback?task=mail").json()["data"]
    assert (said["origin"], said["served"], said["propensity"]) == ("escalation", False, 1.0)
    assert said["said"]["input"] == "a question for others"  # its request still has it
    assert api.get("/v1/tasks/mail").json()["monitor"]["checked"] == 0
    sent = [message["content"] for message in json.loads(way_out.received[0])["messages"]]
    assert "a question for others" in sent
