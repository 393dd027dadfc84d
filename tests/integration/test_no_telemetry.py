"""No library reports to its maker: nothing of theirs is even written for later."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOAD = "import onnxruntime; onnxruntime.get_available_providers()"


def written(home, program):
    """Run a program with a home of its own, without leave to report; return what lies in the home afterwards."""
    kept = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name}
    # Continuous integration silences it too.
    kept = {
        name: value for name, value in kept.items() if name not in {"CI", "GITHUB_ACTIONS", "GITLAB_CI", "CIRCLECI"}
    }
    environment = {**kept, "HOME": str(home), "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(home / ".cache")}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)
    return [path for path in home.rglob("*") if path.is_file()]


def test_onnxruntime_keeps_no_identifier_and_no_events(tmp_path):
    plain, ours = tmp_path / "plain", tmp_path / "ours"
    plain.mkdir()
    ours.mkdir()
    if not written(plain, LOAD):
        pytest.skip("this onnxruntime reports nothing by itself: nothing to show")
    assert written(ours, f"import agent; {LOAD}") == []


def test_it_is_off_in_every_child():
    shown = "import os, agent; print(os.environ['ORT_DISABLE_TELEMETRY'], os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    kept = {**os.environ, "ORT_DISABLE_TELEMETRY": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", shown], env=kept, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]
