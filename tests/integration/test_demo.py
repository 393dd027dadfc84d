"""``make demo`` as a newcomer runs it, and with a target of one's own."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from way_out import Reply, WayOut, stand_in  # noqa: E402 - a script, found by the line above

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]


def run_demo(home, **environment):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "demo.py")],
        env={"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home), **environment},
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
        "answered",
        "queued (low_confidence)",
        "uncertain (egress_never)",
        "Waiting: 3. Now kill -9",
        "Waiting: 3. What was acknowledged",
        '{"model":"stand-in","messages"',
        "left the device: 3 rows, ",
        "never left: 3",
    ):
        assert said in done.stdout
    assert done.stderr == ""
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
        [sys.executable, str(ROOT / "scripts" / "demo.py")],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OUTRIDER_CONFIG": str(config)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = process.stdout.readline()
    process.terminate()
    rest = process.communicate(timeout=60)[0]
    assert 'Your target mine has egress = "approve"' in said
    assert process.returncode == 143, rest
