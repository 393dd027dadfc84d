"""What doctor and models show tell of devices."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from agent.cli import devices
from agent.cli.main import cli
from agent.compute import DeviceKind, DeviceVerdict
from agent.engine.device_verdicts import DeviceVerdicts
from agent.models.manifest import load_manifest

NAME = "smollm2-135m-instruct"
REFUSED = DeviceVerdict(
    model_digest=load_manifest().get(NAME).files[0].sha256,
    kind=DeviceKind.NPU,
    provider="SomeNpu",
    version="1",
    driver="",
    processor="",
    device="Some NPU",
    holds=False,
    reason="it has 0.50 times the speed of the processor",
)


@pytest.fixture
def run(tmp_path):
    config = tmp_path / "outrider.toml"
    config.write_text(f"data_dir = {json.dumps(str(tmp_path))}\n")

    def run(*arguments):
        return CliRunner().invoke(cli, ["--config", str(config), *arguments], prog_name="outrider")

    DeviceVerdicts(tmp_path).keep([REFUSED])
    return run


def child(monkeypatch, code):
    monkeypatch.setattr(devices.executable, "command", lambda *arguments: [sys.executable, "-c", code])


def test_doctor_tells_the_devices_and_what_was_proved_of_them(run):
    found = json.loads(run("doctor", "--json").stdout)
    told = [one for one in found if one["subject"] == "devices"]
    assert "cpu by CPUExecutionProvider" in told[0]["detail"]
    (refused,) = [one for one in told if one["level"] == "note"]
    assert refused["detail"].endswith("on npu by SomeNpu is refused: it has 0.50 times the speed of the processor")


def test_models_show_tells_what_was_proved_of_a_model(run):
    assert "refused: it has 0.50 times the speed" in " ".join(run("models", "show", NAME).stdout.split())
    (one,) = json.loads(run("models", "show", NAME, "--json").stdout)["devices"]
    assert (one["provider"], one["holds"]) == ("SomeNpu", False)


def test_a_driver_that_ends_the_listing_is_told(monkeypatch):
    child(monkeypatch, "import os, sys; sys.stderr.write('driver: bad magic'); sys.stderr.flush(); os.abort()")
    (problem,) = devices.listed().problems
    assert "cannot be listed (exit status -6): driver: bad magic" in problem


def test_a_driver_that_hangs_is_told(monkeypatch):
    def hang(*arguments, **options):
        raise subprocess.TimeoutExpired("x", 30)

    monkeypatch.setattr(devices.subprocess, "run", hang)
    assert devices.listed().problems == ("the providers did not list their devices within 30 s",)
