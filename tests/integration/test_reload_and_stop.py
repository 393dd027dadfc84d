"""Changing the targets of a running daemon, and ending it while callers wait."""

import threading
import time

import pytest
from fakes.cloud import cloud_in_thread
from fakes.command_line import TARGET, as_json, outrider
from fakes.daemon_process import DaemonProcess

from agent import configuration
from agent import daemon as daemon_module
from agent.configuration import LoadedSettings
from agent.errors import ConfigError
from agent.settings import Settings
from agent.text_settings import RedactionSettings
from agent.types import EgressPolicy

NOBODY = "http://127.0.0.1:1/v1"


def reload(daemon):
    with daemon.client(admin=True) as client:
        return client.post("/v1/admin/reload")


def targets(daemon):
    with daemon.client() as client:
        return [target["name"] for target in client.get("/readyz").json()["targets"]]


def test_a_reload_that_cannot_be_read_is_refused_and_changes_nothing(tmp_path):
    daemon = DaemonProcess(tmp_path / "device", TARGET.format(url=NOBODY, egress="approve")).start()
    text = daemon.config.read_text()
    for broken in ("[[targets]]\n", None):
        if broken is None:
            daemon.config.unlink()
        else:
            daemon.config.write_text(broken)
        response = reload(daemon)
        assert response.status_code == 422
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_config")
        assert str(daemon.config) in error["message"]
        assert targets(daemon) == ["main"]
    daemon.config.write_text(text.replace('name = "main"', 'name = "renamed"'))
    assert reload(daemon).json() == {"targets": ["renamed"], "egress": "allow"}
    assert daemon.stop() == 0


def test_a_reload_never_takes_another_file(tmp_path, isolated):
    other = isolated / ".config" / "outrider" / "outrider.toml"
    other.parent.mkdir(parents=True)
    other.write_text(TARGET.format(url=NOBODY, egress="allow"))
    mine = tmp_path / "mine.toml"
    before = LoadedSettings(Settings(redaction=RedactionSettings(terms=("Bluebird",))), {}, mine)
    with pytest.raises(ConfigError, match=r"mine\.toml does not exist"):
        daemon_module._read_egress(before, needed=True)
    assert daemon_module._read_egress(before, needed=False) == Settings()


def test_a_reload_does_not_loosen_what_the_command_line_said(tmp_path, monkeypatch):
    file = tmp_path / "outrider.toml"
    file.write_text(TARGET.format(url=NOBODY, egress="allow"))
    loaded = configuration.load(file, environ={}, flags={"egress.policy": "never"})
    after = daemon_module._read_egress(loaded, needed=True)
    assert (after.egress.policy, after.targets[0].egress) == (EgressPolicy.NEVER, EgressPolicy.NEVER)
    # Without a file, too, what the environment said stays.
    monkeypatch.setenv("OUTRIDER_EGRESS_POLICY", "never")
    nowhere = LoadedSettings(Settings(), {}, tmp_path / "none.toml")
    assert daemon_module._read_egress(nowhere, needed=False).egress.policy is EgressPolicy.NEVER


def test_a_target_that_the_daemon_refuses_is_taken_out_of_the_file_again(tmp_path):
    daemon = DaemonProcess(tmp_path / "device").start()
    before = daemon.config.read_text()
    add = ("target", "add", "main", "--base-url", NOBODY, "--model", "big")
    refused = outrider(daemon, *add, code=2, OUTRIDER_ADMIN_KEY="wrong")
    assert "token" in refused.stderr
    assert daemon.config.read_text() == before
    assert as_json(daemon, *add)["applied"] is True
    assert targets(daemon) == ["main"]
    assert daemon.stop() == 0


def test_a_stop_does_not_wait_for_those_who_only_wait(tmp_path):
    toml = "[server]\nport = 0\ngrace_s = 600\n" + TARGET.format(url=NOBODY, egress="allow")
    daemon = DaemonProcess(tmp_path / "device", toml).start()
    answers, lines = [], []
    waiting = threading.Thread(target=lambda: answers.append(daemon.chat("unsure", on_low_confidence="wait")))
    waiting.start()
    until = time.monotonic() + 30
    while not (rows := as_json(daemon, "queue", "list")["data"]) and time.monotonic() < until:
        time.sleep(0.01)

    following = threading.Event()

    def follow():
        with daemon.client() as client, client.stream("GET", f"/v1/requests/{rows[0]['request_id']}/events") as stream:
            for line in stream.iter_lines():
                following.set()
                lines.append(line)

    watching = threading.Thread(target=follow)
    watching.start()
    assert following.wait(30)
    assert daemon.stop() == 0  # fails after a minute if it waits for the grace period
    waiting.join(30)
    watching.join(30)
    (answer,) = answers
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/requests/{rows[0]['request_id']}"
    assert answer.json()["choices"][0]["message"]["content"] == "echo: unsure"
    assert '"code":"shutting_down"' in "".join(lines)


def test_the_air_gap_holds_at_once_and_what_waited_stays_before_a_person(tmp_path):
    with cloud_in_thread() as cloud:
        daemon = DaemonProcess(tmp_path / "device", TARGET.format(url=cloud.base_url, egress="allow")).start()
        outrider(daemon, "egress", "off")
        assert "uncertain" in outrider(daemon, "ask", "unsure", code=None).stderr
        assert as_json(daemon, "queue", "list")["data"] == []
        assert as_json(daemon, "target", "list")[0]["egress"] == "never"
        outrider(daemon, "egress", "on", "--policy", "approve")
        outrider(daemon, "ask", "unsure")
        (row,) = as_json(daemon, "queue", "list")["data"]
        assert (row["state"], row["egress"]) == ("awaiting_approval", "approve")
        assert cloud.chats == []
        daemon.stop()
