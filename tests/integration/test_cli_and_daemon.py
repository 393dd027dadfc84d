"""The command line as a program: against a real daemon, against its database while it is down."""

import json
import subprocess
import sys
import tomllib

import pytest
import trustme
from fakes.cloud import cloud_in_thread
from fakes.command_line import TARGET, as_json, outrider
from fakes.daemon_process import DaemonProcess

from agent.cli.child_daemon import until_healthy


@pytest.fixture
def cloud():
    with cloud_in_thread() as server:
        yield server


@pytest.fixture
def daemon(tmp_path):
    process = DaemonProcess(tmp_path / "device").start()
    yield process
    assert process.stop() == 0, process.log()


def test_ask_puts_the_answer_on_stdout_and_the_verdict_on_stderr(daemon):
    command = [sys.executable, "-m", "agent", "ask", "hello", "--explain"]
    result = subprocess.run(command, capture_output=True, text=True, env=daemon.environment, check=True)
    assert result.stdout == "echo: hello\n"
    assert "confidence 0.99 (uncalibrated); answered (confident), answer from local" in result.stderr
    assert "threshold 0.500" in result.stderr
    assert "lowest_tenth_logprob" in result.stderr
    assert outrider(daemon, "ask", "-", "--stream", stdin="from a pipe").stdout == "echo: from a pipe\n"


def test_ask_without_a_text_to_show_exits_3(daemon):
    result = outrider(daemon, "ask", "unsure", "--on-low-confidence", "defer", code=3)
    assert result.stdout == ""
    assert "outrider requests show" in result.stderr
    assert outrider(daemon, "ask", "unsure", "--on-low-confidence", "abstain", "--stream", code=3).stdout == ""
    assert outrider(daemon, "ask", "crash", code=70).stdout == ""


def test_errors_of_the_daemon_keep_their_code(daemon):
    result = outrider(daemon, "ask", "hello", "--model", "nope", "--json", code=2)
    assert json.loads(result.stderr)["error"]["code"] == "model_not_found"
    assert "nope" in outrider(daemon, "ask", "hello", "--model", "nope", code=2).stderr
    outrider(daemon, "requests", "show", "nothing", code=2)
    outrider(daemon, "queue", "retry", "nothing", code=2)


def test_chat_carries_the_conversation_along(daemon):
    result = outrider(daemon, "chat", "--json", stdin="one\ntwo\n/reset\nthree\n/quit\nnever asked\n")
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["choices"][0]["message"]["content"] for answer in answers] == [
        "echo: one",
        "echo: two",
        "echo: three",
    ]
    records = [as_json(daemon, "requests", "show", answer["outrider"]["request_id"]) for answer in answers]
    asked = [[message["content"] for message in record["request"]["messages"]] for record in records]
    assert asked == [["one"], ["one", "echo: one", "two"], ["three"]]


def test_env_is_what_the_openai_client_needs(daemon):
    values = as_json(daemon, "env")
    assert values == {"OPENAI_BASE_URL": f"{daemon.url}/v1", "OPENAI_API_KEY": daemon.token()}


def test_a_target_added_later_gets_only_what_a_person_releases(daemon, cloud):
    for number in range(3):
        outrider(daemon, "ask", f"unsure secret {number}")
    url = cloud.base_url
    priced = ("--input-price", "2.5", "--output-price", "10", "--max-output-tokens", "100")
    added = as_json(daemon, "target", "add", "main", "--base-url", url, "--model", "big", "--egress", "allow", *priced)
    assert (added["applied"], added["input_price"], added["max_output_tokens"]) == (True, "2.5", 100)
    assert tomllib.loads(daemon.config.read_text())["server"] == {"port": 0}
    # A new question goes out by itself; the three older ones do not.
    assert outrider(daemon, "ask", "unsure and new", "--wait").stdout == "cloud: unsure and new\n"
    assert [chat.last_user_text for chat in cloud.chats] == ["unsure and new"]

    listed = as_json(daemon, "queue", "list", "--state", "awaiting_approval")
    assert listed["counts"]["awaiting_approval"]["rows"] == 3
    ids = [row["id"] for row in listed["data"]]
    shown = outrider(daemon, "queue", "show", ids[0], "--as-sent", "--target", "main").stdout
    declined = outrider(daemon, "queue", "release", ids[0], stdin="n\n", code=1)
    assert "1 row would leave for main" in declined.stderr
    assert shown in declined.stderr
    assert "nothing was changed; say --all --yes where" in outrider(daemon, "queue", "release", "--all", code=1).stderr
    assert len(cloud.chats) == 1

    assert as_json(daemon, "queue", "release", ids[0], "--yes")["released"] == 1
    assert outrider(daemon, "requests", "watch", listed["data"][0]["request_id"]).stdout.strip().endswith("succeeded")
    assert cloud.chats[1].body.decode() == shown
    outrider(daemon, "queue", "cancel", ids[1])
    assert as_json(daemon, "queue", "show", ids[1])["state"] == "cancelled"
    ended = outrider(daemon, "requests", "show", ids[1]).stdout  # by the row's id, as `queue list` shows it
    assert ended.startswith(f"{listed['data'][1]['request_id']}  cancelled")
    assert "row         cancelled: " in ended
    outrider(daemon, "queue", "retry", ids[1], "--json")
    record = outrider(daemon, "requests", "show", listed["data"][0]["request_id"]).stdout
    assert "echo: unsure secret 0" in record
    assert "cloud: unsure secret 0" in record
    outrider(daemon, "target", "remove", "main")
    assert as_json(daemon, "target", "list") == []


def test_the_same_verbs_work_on_the_database_while_the_daemon_is_down(tmp_path, cloud):
    daemon = DaemonProcess(tmp_path / "device", TARGET.format(url=cloud.base_url, egress="approve")).start()
    for number in range(3):
        outrider(daemon, "ask", f"unsure {number}")
    running = as_json(daemon, "queue", "list")
    requests = as_json(daemon, "requests", "list")
    record = as_json(daemon, "requests", "show", requests[0]["id"])
    body = outrider(daemon, "queue", "show", running["data"][0]["id"], "--as-sent").stdout
    daemon.kill()

    assert as_json(daemon, "queue", "list") == running
    assert as_json(daemon, "requests", "list") == requests
    assert as_json(daemon, "requests", "show", requests[0]["id"]) == record
    assert as_json(daemon, "requests", "show", requests[0]["escalation"]["id"]) == record
    assert "no request nothing" in outrider(daemon, "requests", "show", "nothing", code=2).stderr
    first, second, third = (row["id"] for row in running["data"])
    assert outrider(daemon, "queue", "show", first, "--as-sent").stdout == body
    outrider(daemon, "queue", "cancel", third)
    assert outrider(daemon, "queue", "purge", "--yes").stdout == "1 row deleted\n"
    assert as_json(daemon, "queue", "release", first, second, "--yes") == {"released": 2, "target": "main"}
    assert cloud.chats == []
    drained = as_json(daemon, "queue", "drain")
    assert drained["counts"]["succeeded"]["rows"] == 2
    assert sorted(chat.last_user_text for chat in cloud.chats) == ["unsure 0", "unsure 1"]
    assert cloud.chats[0].body.decode() == body
    egress = as_json(daemon, "egress", "list")
    assert egress["totals"]["rows"] == 2
    assert egress["totals"]["bytes"] == sum(len(chat.body) for chat in cloud.chats)
    assert "hello" not in json.dumps(egress)
    outrider(daemon, "requests", "watch", requests[0]["id"], code=69)


def test_a_drain_to_nobody_ends_and_spends_no_attempt(tmp_path):
    toml = TARGET.format(url="http://127.0.0.1:1/v1", egress="allow")
    daemon = DaemonProcess(tmp_path / "device", toml).start()
    outrider(daemon, "ask", "unsure")
    daemon.stop()
    outrider(daemon, "queue", "drain")
    row = as_json(daemon, "queue", "list")["data"][0]
    assert (row["state"], row["attempts"]) == ("pending", 0)


def test_key_backup_and_restore(tmp_path):
    daemon = DaemonProcess(tmp_path / "device").start()
    outrider(daemon, "ask", "unsure, to be kept")
    assert "stop it" in outrider(daemon, "key", "rotate", "--yes", code=75).stderr
    old = as_json(daemon, "key", "status")["fingerprint"]
    copy = tmp_path / "copy.db"
    report = outrider(daemon, "backup", str(copy), "--with-key", stdin="correct horse\n")
    assert str(copy) in report.stdout
    assert "NOT in it" in outrider(daemon, "backup", str(tmp_path / "bare.db")).stderr
    outrider(daemon, "backup", str(copy), code=74)
    daemon.stop()

    code = outrider(daemon, "key", "recovery").stdout
    assert as_json(daemon, "key", "rotate", "--yes")["fingerprint"] != old
    before = as_json(daemon, "requests", "list")
    outrider(daemon, "key", "recovery", "--restore", stdin=code, code=74)  # the old key opens nothing any more
    outrider(daemon, "backup", str(copy), "--restore", "--with-key", stdin="wrong horse\n", code=74)
    outrider(daemon, "backup", str(copy), "--restore", "--with-key", stdin="correct horse\n")
    assert as_json(daemon, "key", "status")["fingerprint"] == old
    after = as_json(daemon, "requests", "list")
    assert [(row["id"], row["state"]) for row in after] == [(row["id"], row["state"]) for row in before]
    assert after[0]["escalation"]["reason"] == "restored"

    (daemon.data / "key").unlink()
    assert "recovery --restore" in outrider(daemon, "requests", "list", code=74).stderr
    outrider(daemon, "key", "recovery", "--restore", stdin=code.replace("-", " ").lower())
    assert as_json(daemon, "requests", "list") == after


def test_a_daemon_with_tls_is_trusted_by_its_own_certificate(tmp_path):
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems) + authority.cert_pem.bytes())
    key.write_bytes(issued.private_key_pem.bytes())
    key.chmod(0o600)
    toml = f'[server]\nport = 0\ntls_cert = "{certificate}"\ntls_key = "{key}"\n'
    daemon = DaemonProcess(tmp_path / "device", toml).start(wait=False)
    try:
        until_healthy(daemon.data, daemon.process, 30)  # as an update waits for the program that it put in place
        assert outrider(daemon, "ask", "hello").stdout == "echo: hello\n"
        assert as_json(daemon, "env")["OPENAI_BASE_URL"].startswith("https://127.0.0.1:")
    finally:
        daemon.stop()


def test_doctor_of_a_running_daemon(daemon):
    outrider(daemon, "ask", "unsure")
    found = as_json(daemon, "doctor")
    assert {finding["level"] for finding in found} == {"ok", "note"}
    details = {finding["subject"]: finding["detail"] for finding in found}
    assert details["model smollm2-135m-instruct"] == "ready"
    assert "1 row to be released" in details["queue"]
    assert daemon.url in details["daemon"]
