"""How long texts stay, as whoever asks sees it: late answers wait to be fetched, and nothing stays that should go."""

import time

import pytest
from fakes.api_server import served
from fakes.cloud import cloud_in_thread, status
from fakes.command_line import TARGET, as_json, outrider
from fakes.daemon_process import DaemonProcess

DAY = 86_400_000


@pytest.fixture
def cloud():
    with cloud_in_thread() as server:
        yield server


@pytest.fixture
def start(tmp_path, cloud):
    started = []

    def start(toml=""):
        process = DaemonProcess(tmp_path / "device", toml + TARGET.format(url=cloud.base_url, egress="allow"))
        started.append(process)
        return process.start()

    yield start
    for process in started:
        assert process.stop() == 0, process.log()


@pytest.mark.parametrize("running", [True, False])
def test_a_purge_leaves_late_answers_that_nobody_has_fetched(start, running):
    daemon = start()
    ids = []
    for number in range(3):
        outrider(daemon, "ask", f"unsure {number}", code=None)
        ids.append(as_json(daemon, "requests", "list")[0]["id"])
        while as_json(daemon, "requests", "list")[0]["state"] == "queued":
            time.sleep(0.01)
    if not running:
        daemon.stop()
    assert as_json(daemon, "requests", "show", ids[0])["cloud_answer"]["text"] == "cloud: unsure 0"
    asked = outrider(daemon, "queue", "purge", stdin="n\n", code=1).stderr
    assert "succeeded: 3" in asked
    assert "nobody has fetched: 2; they stay" in asked
    assert "delete 1 ended row and the texts?" in asked
    assert as_json(daemon, "queue", "purge", "--yes") == {"purged": 1, "unfetched_kept": 2}
    assert as_json(daemon, "requests", "show", ids[1])["cloud_answer"]["text"] == "cloud: unsure 1"
    assert outrider(daemon, "queue", "purge", "--yes", "--unfetched").stdout == "2 rows deleted\n"
    outrider(daemon, "requests", "show", ids[2], code=2)


def test_without_bodies_a_caller_who_waited_gets_the_draft_and_nothing_stays(start, cloud):
    cloud.default = status(400)
    daemon = start('[retention]\nbodies = "none"\n')
    result = outrider(daemon, "ask", "unsure, and private", "--wait", code=None)
    assert result.stdout == "echo: unsure, and private\n"
    (record,) = as_json(daemon, "requests", "list")
    assert record["state"] == "unresolved"
    shown = as_json(daemon, "requests", "show", record["id"])
    assert (shown["request"], shown["generation"]) == (None, None)


def test_asking_for_what_nobody_answered_counts_as_fetching_it(tmp_path):
    with served(tmp_path / "data", heartbeat_s=0.05) as api:

        def later(days):
            api.skew_ms = days * DAY
            return time.time_ns() // 1_000_000 + api.skew_ms

        shown, watched, left = (api.chat("unsure").json()["outrider"]["request_id"] for _ in range(3))
        assert api.call(api.storage.outbox.expire(later(7))) == 3
        assert api.get(f"/v1/requests/{shown}").json()["generation"]["text"] == "echo: unsure"
        assert "echo: unsure" in api.get(f"/v1/requests/{watched}/events").text
        api.call(api.storage.maintain(later(9)))
        texts = [api.get(f"/v1/requests/{name}").json()["generation"] for name in (shown, watched)]
        assert texts == [None, None]
        assert api.get(f"/v1/requests/{left}").json()["generation"]["text"] == "echo: unsure"
