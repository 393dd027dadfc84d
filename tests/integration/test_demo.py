"""``outrider demo`` as a newcomer runs it, and with a target of one's own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from agent.cli.demo.messages import KINDS, TAUGHT, field_messages
from agent.cli.demo.way_out import Reply, WayOut, stand_in

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]


def test_the_messages_are_many_different_and_of_all_kinds():
    taught = [json.loads(line) for line in TAUGHT.read_text(encoding="utf-8").splitlines()]
    forty = field_messages()
    assert len(forty) == 40
    assert {message.kind for message in forty} == {*KINDS}
    assert min(sum(one["label"] == kind for one in taught) for kind in KINDS) >= 30
    texts = [one["input"].casefold() for one in taught] + [message.text.casefold() for message in forty]
    assert len({*texts}) == len(texts)


def run_demo(home, **environment):
    return subprocess.run(
        [sys.executable, "-m", "agent", "demo"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "TMPDIR": str(home),
            "PYTHONPATH": str(ROOT),
            **environment,
        },
        cwd=home,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def children_with(folder):
    """Every process whose environment names the folder; the demo's children inherit it."""
    return [
        found
        for found in psutil.process_iter(["environ"])
        if folder in str((found.info["environ"] or {}).get("TMPDIR"))
    ]


def test_the_demo_tells_the_whole_road_and_leaves_nothing(tmp_path):
    done = run_demo(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for said in (
        "stand-in (real HTTP, canned answers)",
        "connect: [Errno 111] Connection refused",
        "Of the answers served locally at least 90.0% are right, with probability 90%",
        "uncertain (egress_never): names a patient and was sent with egress: never",
        "The most doubtful of those held",
        "Now kill -9",
        "What was acknowledged was on disk",
        '{"model":"stand-in","messages"',
        "left the device: ",
        "a canned answer says nothing of quality",
    ):
        assert said in done.stdout
    assert done.stderr == ""
    waited = re.findall(r"Waiting: (\d+)\.", done.stdout)
    assert len(waited) == 2
    assert waited[0] == waited[1]
    share = re.search(r"served on this device: (\d+) of 40", done.stdout)
    right = re.search(r"of these right: (\d+) of (\d+)", done.stdout)
    assert share
    assert right
    assert share[1] == right[2]
    assert int(share[1]) >= 20
    assert int(right[1]) / int(right[2]) >= 0.8
    assert list(tmp_path.iterdir()) == []
    assert not children_with(str(tmp_path))


def test_with_a_target_of_ones_own_the_answers_are_its_own(tmp_path):
    asked = []

    def own(method, path, headers, body):
        asked.append((method, path, headers.get("authorization")))
        reply = stand_in({})(method, path, headers, body)
        return Reply(
            reply.status, reply.headers, reply.body.replace(b"There is no canned answer to this.", b"Really so.")
        )

    server = WayOut(own)
    server.open()
    config = tmp_path / "outrider.toml"
    config.write_text(
        f'[[targets]]\nname = "mine"\nbase_url = "{server.url}"\nmodel = "big"\negress = "allow"\napi_key_env = "MY_KEY"\n'
    )
    try:
        done = run_demo(tmp_path, OUTRIDER_CONFIG=str(config), MY_KEY="secret-key")
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mine (your own)" in done.stdout
    assert "Really so." in done.stdout
    assert '{"model":"big"' in done.stdout
    assert "secret-key" not in done.stdout
    assert {("POST", "/v1/chat/completions", "Bearer secret-key")} == {one for one in asked if one[0] == "POST"}


def test_a_target_that_needs_a_person_is_not_used(tmp_path):
    config = tmp_path / "outrider.toml"
    config.write_text(
        '[[targets]]\nname = "mine"\nbase_url = "http://127.0.0.1:9/v1"\nmodel = "big"\negress = "approve"\n'
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "agent", "demo"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "OUTRIDER_CONFIG": str(config),
            "PYTHONPATH": str(ROOT),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = process.stdout.readline()
    process.terminate()
    rest = process.communicate(timeout=60)[0]
    assert 'Your target mine has egress = "approve"' in said
    assert process.returncode == 143, rest
