"""What a person sees and does at the queue: nothing leaves that was not counted, nothing that waits is hidden."""

import pytest
from fakes.cloud import cloud_in_thread
from fakes.command_line import TARGET, as_json, outrider
from fakes.daemon_process import DaemonProcess

from agent.cli import access as access_module
from agent.cli import queue as queue_module
from agent.storage import keys
from agent.storage.connection import DATABASE_NAME, connect


@pytest.fixture
def cloud():
    with cloud_in_thread() as server:
        yield server


@pytest.fixture
def daemon(tmp_path, cloud):
    process = DaemonProcess(tmp_path / "device", TARGET.format(url=cloud.base_url, egress="approve")).start()
    yield process
    assert process.stop() == 0, process.log()


def test_a_release_takes_what_was_counted_and_not_what_came_after_the_question(daemon, cloud, monkeypatch):
    for number in range(5):
        outrider(daemon, "ask", f"unsure {number}")
    asked = []

    def agree(question):
        asked.append(question)
        outrider(daemon, "ask", "unsure and too late to be seen")

    monkeypatch.setattr(queue_module, "confirm", agree)
    monkeypatch.setattr(queue_module, "PAGE_ROWS", 2)
    monkeypatch.setattr(access_module, "RELEASED_AT_ONCE", 2)
    result = outrider(daemon, "queue", "release", "--all")
    assert result.stdout == "5 rows released to main\n"
    assert asked == ["release 5 rows (2 of them not shown) to main?"]
    assert "and 2 more, not shown" in result.stderr
    (left,) = as_json(daemon, "queue", "list", "--state", "awaiting_approval")["data"]
    outrider(daemon, "queue", "drain")
    assert as_json(daemon, "queue", "show", left["id"])["state"] == "awaiting_approval"
    assert "unsure and too late to be seen" not in [chat.last_user_text for chat in cloud.chats]


def test_a_bare_release_shows_what_waits_and_asks(daemon):
    for number in range(5):
        outrider(daemon, "ask", f"unsure {number}")
    result = outrider(daemon, "queue", "release", "--show-all", stdin="n\n", code=1)
    assert "5 rows would leave for main, UNREDACTED" in result.stderr
    assert all(f"unsure {number}" in result.stderr for number in range(5))
    assert "not shown" not in result.stderr
    outrider(daemon, "queue", "release", "--yes", code=2)
    assert as_json(daemon, "queue", "list")["counts"]["awaiting_approval"]["rows"] == 5
    assert outrider(daemon, "queue", "release", stdin="y\n").stdout == "5 rows released to main\n"


def test_the_list_shows_what_waits_and_tells_what_it_leaves_out(daemon):
    for number in range(4):
        outrider(daemon, "ask", f"unsure {number}")
    first, *others = (row["id"] for row in as_json(daemon, "queue", "list")["data"])
    outrider(daemon, "queue", "cancel", first)
    assert [row["id"] for row in as_json(daemon, "queue", "list")["data"]] == others
    assert [row["id"] for row in as_json(daemon, "queue", "list", "--all-states")["data"]] == [first, *others]
    result = outrider(daemon, "queue", "list", "--limit", "1")
    assert others[0] in result.stdout
    assert "... and 2 more" in result.stderr
    assert "more" not in outrider(daemon, "queue", "list").stderr
    outrider(daemon, "queue", "list", "--all-states", "--state", "dead", code=2)


def test_the_log_of_what_left_is_checked_with_and_without_a_daemon(daemon):
    outrider(daemon, "ask", "unsure")
    outrider(daemon, "queue", "release", "--all", "--yes")
    request_id = as_json(daemon, "requests", "list")[0]["id"]
    outrider(daemon, "requests", "watch", request_id)
    assert as_json(daemon, "egress", "--verify") == {"whole": True, "first_bad_id": None}
    assert log_finding(daemon) == "ok"
    daemon.stop()
    assert outrider(daemon, "egress", "--verify").stdout == "the log is whole\n"
    assert log_finding(daemon) == "ok"

    connection = connect(daemon.data / DATABASE_NAME, keys.load(daemon.data).material)
    connection.execute("DROP TRIGGER egress_log_no_update")
    connection.execute("UPDATE egress_log SET bytes = 1")
    connection.close()
    broken = {"whole": False, "first_bad_id": 1}
    assert as_json(daemon, "egress", "--verify", code=74) == broken
    assert log_finding(daemon) == "problem"
    daemon.start()
    assert as_json(daemon, "egress", "--verify", code=74) == broken
    assert "BROKEN from entry 1 on" in outrider(daemon, "egress", "--verify", code=74).stdout
    assert log_finding(daemon) == "problem"


def log_finding(daemon):
    found = as_json(daemon, "doctor", code=None)
    return next(finding["level"] for finding in found if finding["subject"] == "egress log")


def test_a_streamed_answer_that_was_cut_is_told_with_the_request_to_ask_for(daemon):
    result = outrider(daemon, "ask", "crash now", "--stream", code=70)
    (row,) = as_json(daemon, "queue", "list")["data"]
    assert result.stdout.endswith("\n")
    assert "was cut" in result.stderr
    assert row["request_id"] in result.stderr
