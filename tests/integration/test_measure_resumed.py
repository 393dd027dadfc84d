"""kill -9 in the middle of a measurement, and on from there. A model with random weights."""

import json
import os
import signal
import subprocess
import sys

import pytest
from fakes import tiny_gguf

from agent.models.quantizing import Wish, quantize
from agent.models.store import open_store

KILLED = """
import os, signal, sys
from agent.evaluation.steps import Steps
keep, steps = Steps.keep, 0
def keep_and_die(self, step, value):
    global steps
    keep(self, step, value)
    steps += 1
    if steps == {last}:
        os.kill(os.getpid(), signal.SIGKILL)
Steps.keep = keep_and_die
from agent.__main__ import main
sys.exit(main())
"""


@pytest.fixture
def model(tmp_path):
    source = tiny_gguf.write(tmp_path / "Tiny F16.gguf", chats=True)
    store = open_store(tmp_path / "data")
    made = quantize(store, Wish(source=str(source), recipe="gguf-q4_0", importance="none"), lambda _: None)
    return source, made.model.name


def measured(tmp_path, model, *python):
    task = tmp_path / "cars.jsonl"
    task.write_text("".join(f'{{"text": "car {at}", "label": "{"rb"[at % 2]}"}}\n' for at in range(10)))
    arguments = [
        "--data-dir",
        str(tmp_path / "data"),
        "measure",
        model[1],
        "--against",
        str(model[0]),
        "--task",
        str(task),
    ]
    return subprocess.run(
        [sys.executable, *(python or ("-m", "agent")), *arguments, "--longest-context", "512", "--json"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "OUTRIDER_ENGINE_THREADS": "1"},
        check=False,
    )


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_measurement_goes_on_after_kill_9(tmp_path, model):
    folder = tmp_path / "data" / "models" / "measuring"
    undisturbed = measured(tmp_path, model)
    assert undisturbed.stdout, undisturbed.stderr
    whole = json.loads(undisturbed.stdout)["quality"]
    assert not list(folder.iterdir())
    killed = measured(tmp_path, model, "-c", KILLED.format(last=40))  # all questions are asked, some windows read
    assert killed.returncode == -signal.SIGKILL
    (kept,) = folder.iterdir()
    assert len(kept.read_text().splitlines()) == 40
    again = measured(tmp_path, model)
    assert "going on where it was stopped: 40 steps are done" in again.stderr
    resumed = json.loads(again.stdout)["quality"]
    for figure in ("texts", "instructions_followed", "needles", "tasks", "reference_digest"):
        assert resumed[figure] == whole[figure]
    assert again.stderr.count(" of 20 asked") == 20
    assert not list(folder.iterdir())
