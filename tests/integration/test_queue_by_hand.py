"""What a person sees and does at the queue: nothing leaves that was not counted, nothing that waits is hidden."""

import json
import re
import resource
import socket
import time

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

    def agree(question, **_):
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
    assert "5 rows would leave for main" in result.stderr
    assert "names are NOT removed" in result.stderr
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


@pytest.mark.parametrize("running", [True, False])
def test_named_rows_that_do_not_wait_are_told_by_their_state(daemon, running):
    for number in range(2):
        outrider(daemon, "ask", f"unsure {number}")
    first, second = (row["id"] for row in as_json(daemon, "queue", "list")["data"])
    outrider(daemon, "queue", "cancel", first)
    if not running:
        assert daemon.stop() == 0
    result = outrider(daemon, "queue", "release", first, "--yes", code=2)
    assert f"{first} is cancelled" in result.stderr
    result = outrider(daemon, "queue", "release", first, second, "--yes")
    assert result.stdout == "1 row released to main\n"
    assert f"{first} is cancelled" in result.stderr


def reconfigure(daemon, toml):
    daemon.configure(toml)
    if daemon.process.poll() is None:
        with daemon.client(admin=True) as client:
            client.post("/v1/admin/reload", json={}).raise_for_status()


@pytest.mark.parametrize("running", [True, False])
def test_rows_of_a_target_that_is_gone_can_go_to_another(daemon, cloud, running):
    with socket.socket() as nobody:  # a port where nobody listens
        nobody.bind(("127.0.0.1", 0))
        old = TARGET.format(url=f"http://127.0.0.1:{nobody.getsockname()[1]}/v1", egress="allow")
    reconfigure(daemon, old)
    outrider(daemon, "ask", "unsure, pending")
    outrider(daemon, "ask", "unsure, cancelled")
    pending, cancelled = (row["id"] for row in as_json(daemon, "queue", "list")["data"])
    outrider(daemon, "queue", "cancel", cancelled)
    if not running:
        assert daemon.stop() == 0
    reconfigure(daemon, TARGET.format(url=cloud.base_url, egress="allow").replace('"main"', '"other"'))
    retried = outrider(daemon, "queue", "retry", cancelled)
    assert "awaiting_approval" in retried.stdout
    assert "target_removed" in retried.stderr
    result = outrider(daemon, "queue", "release", pending, cancelled, "--yes")
    assert result.stdout == "2 rows released to other\n"
    outrider(daemon, "queue", "drain")
    for row_id in (pending, cancelled):
        request_id = as_json(daemon, "queue", "show", row_id)["request_id"]
        if running:
            outrider(daemon, "requests", "watch", request_id)
        assert as_json(daemon, "requests", "show", request_id)["answered_by"] == "other"


def test_the_log_of_what_left_is_checked_with_and_without_a_daemon(daemon):
    outrider(daemon, "ask", "unsure")
    outrider(daemon, "queue", "release", "--all", "--yes")
    request_id = as_json(daemon, "requests", "list")[0]["id"]
    outrider(daemon, "requests", "watch", request_id)
    whole = as_json(daemon, "egress", "verify")
    assert (whole["whole"], whole["first_bad_id"], whole["head"]["rows"]) == (True, None, 1)
    (line,) = as_json(daemon, "egress", "list")["data"]
    assert (line["policy"], line["redactions"], line["mac"]) == ("approve", {}, whole["head"]["mac"])
    assert re.fullmatch(r"1 row, \d+ B, to main\n", outrider(daemon, "egress", "today").stdout)
    copy = daemon.data / "log.jsonl"
    outrider(daemon, "egress", "export", str(copy))
    assert json.loads(copy.read_text()) == line
    full = daemon.data / "part.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        failed = outrider(daemon, "egress", "export", str(full), code=78)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"{full} cannot be written" in failed.stderr
    assert not full.exists()
    assert log_finding(daemon) == "ok"
    daemon.stop()
    assert outrider(daemon, "egress", "verify", "--against", str(copy)).stdout == "the log is whole: 1 entry\n"
    assert outrider(daemon, "egress", "export", "--format", "csv").stdout.splitlines()[0].startswith("id,at_ms,")
    assert log_finding(daemon) == "ok"
    copy.write_text(copy.read_text().replace(line["mac"], "0" * 64))  # as if the log had been made anew since
    assert as_json(daemon, "egress", "verify", "--against", str(copy), code=74)["first_bad_id"] == 1

    connection = connect(daemon.data / DATABASE_NAME, keys.load(daemon.data).material)
    connection.execute("DROP TRIGGER egress_log_no_update")
    connection.execute("UPDATE egress_log SET bytes = 1")
    connection.close()
    assert as_json(daemon, "egress", "verify", code=74)["first_bad_id"] == 1
    assert log_finding(daemon) == "problem"
    daemon.start()
    assert as_json(daemon, "egress", "verify", code=74)["whole"] is False
    assert "BROKEN from entry 1 on" in outrider(daemon, "egress", "verify", code=74).stdout
    assert log_finding(daemon) == "problem"


def log_finding(daemon):
    found = as_json(daemon, "doctor", code=None)
    return next(finding["level"] for finding in found if finding["subject"] == "egress log")


def test_a_target_that_is_blocked_is_told_where_its_rows_are_looked_at(daemon, cloud, tmp_path):
    key = tmp_path / "key.txt"
    key.write_text("sk-1")
    key.chmod(0o644)
    outrider(daemon, "target", "remove", "main")
    add = ("target", "add", "open", "--base-url", cloud.base_url, "--model", "big", "--api-key-file", str(key))
    assert f"chmod 600 {key} (until then nothing is sent)" in outrider(daemon, *add).stderr
    outrider(daemon, "ask", "unsure of it")
    outrider(daemon, "queue", "release", "--all", "--yes")
    until = time.monotonic() + 30
    while as_json(daemon, "target", "list")[0]["status"]["state"] != "blocked" and time.monotonic() < until:
        time.sleep(0.01)
    for verb in ("list", "drain"):
        assert "target open is blocked: api_key_file" in outrider(daemon, "queue", verb).stderr
    key.chmod(0o600)
    outrider(daemon, "queue", "drain")
    outrider(daemon, "requests", "watch", as_json(daemon, "requests", "list")[0]["id"])
    assert len(cloud.chats) == 1


def test_a_streamed_answer_that_was_cut_is_told_with_the_request_to_ask_for(daemon):
    result = outrider(daemon, "ask", "crash now", "--stream", code=70)
    (row,) = as_json(daemon, "queue", "list")["data"]
    assert result.stdout.endswith("\n")
    assert "was cut" in result.stderr
    assert row["request_id"] in result.stderr


@pytest.mark.parametrize("running", [True, False])
def test_a_person_edits_approves_and_sees_exactly_what_leaves(daemon, cloud, running):
    outrider(daemon, "ask", "unsure about bob@example.org")
    row_id = as_json(daemon, "queue", "list")["data"][0]["id"]
    if not running:
        assert daemon.stop() == 0
    refused = outrider(daemon, "queue", "edit", row_id, "--file", "-", stdin="{}", code=None)
    assert "a JSON list" in refused.stderr
    left = outrider(daemon, "queue", "edit", row_id, code=1, EDITOR="true")
    assert "the editor saved nothing" in left.stderr
    edited = outrider(daemon, "queue", "edit", row_id, "--text", "What of eve@example.org?")
    assert "[EMAIL_1]" in edited.stderr
    assert as_json(daemon, "queue", "show", row_id)["edited"] is True
    shown = outrider(daemon, "queue", "show", row_id, "--as-sent").stdout
    assert json.loads(shown)["messages"][-1]["content"] == "What of [EMAIL_1]?"
    assert outrider(daemon, "queue", "approve", row_id, "--yes").stdout == "1 row released to main\n"
    request_id = as_json(daemon, "queue", "show", row_id)["request_id"]
    if not running:  # told before anything is written, and lost
        assert "is pending" in outrider(daemon, "queue", "edit", row_id, code=2, EDITOR="touch").stderr
    if running:
        outrider(daemon, "requests", "watch", request_id)
    else:
        outrider(daemon, "queue", "drain")
    assert cloud.chats[-1].body.decode() == shown
