"""Devices beyond one process: a driver that kills the worker, and real providers in environments of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import fake_worker
from fakes import plain_encoders as plain

from agent.compute import DeviceKind
from agent.engine import frames
from agent.engine.device_verdicts import DeviceVerdicts
from agent.engine.supervisor import EnginePool, WorkerState
from agent.settings import EngineSettings
from agent.types import ModelFile, ModelFormat

ROOT = Path(__file__).parents[2]


def environment(name):
    command = [sys.executable, str(ROOT / "scripts" / "peer_environment.py"), name, "--find"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return (found.stdout.strip(), found.stderr.strip())


# Looked for before a test has a home of its own.
ENVIRONMENTS = {name: environment(name) for name in ("providers", "openvino")}

TRIAL = """
import json, sys
import msgspec
from agent.compute import DeviceWish
from agent.engine import confinement
from agent.engine.device_proof import placed, tried
from agent.engine.execution_providers import offer
from agent.engine.onnx_encoder_runtime import OnnxEncoderRuntime
from agent.engine.onnx_session import CPU
from agent.types import ModelFile

model = msgspec.json.decode(sys.argv[1], type=ModelFile)
found = offer()
confinement.confine()
_, use = placed(model, threads=1, wish=DeviceWish.AUTO, known=(), announce=lambda one: None)
reference = OnnxEncoderRuntime(model, threads=1)
trials = [tried(one, model, 1, reference)[1] for one in found.candidates if one.provider != CPU]
print(json.dumps({"use": msgspec.to_builtins(use), "trials": msgspec.to_builtins(trials)}))
"""


def trial(name, folder):
    """Try every provider of an environment on a model; return what was chosen and what each proved."""
    python, missing = ENVIRONMENTS[name]
    if not python:
        pytest.skip(missing)
    model = json.dumps(
        {"name": "m", "path": str(folder), "format": "onnx_encoder", "sha256": "0" * 64, "context_tokens": 64}
    )
    environ = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([python, "-c", TRIAL, model], capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return found["use"], {one["provider"]: one for one in found["trials"]}


def test_openvino_runs_the_graph_and_is_held_to_what_it_gives(tmp_path):
    """The processor by another name: never chosen, but everything that is proved of a device is proved of it."""
    use, trials = trial("openvino", plain.embedder(tmp_path))
    assert use["used"]["provider"] == "CPUExecutionProvider"
    assert "its device is the processor" in use["refused"][0]["reason"]
    proved = trials["OpenVINOExecutionProvider"]
    assert proved["node_share"] == 1
    assert proved["agreement"] == pytest.approx(1, abs=1e-3)
    assert proved["speed"] > 0


def test_the_plugin_for_an_npu_that_offers_the_processor_is_refused_by_kind(tmp_path):
    use, trials = trial("providers", plain.embedder(tmp_path))
    refused = {one["provider"]: one for one in use["refused"]}
    assert refused["QNNExecutionProvider"]["kind"] == "cpu"
    assert "its device is the processor" in refused["QNNExecutionProvider"]["reason"]
    assert use["used"]["provider"] == "CPUExecutionProvider"
    assert not trials["QNNExecutionProvider"]["holds"], "also where its kind is not looked at"


async def test_a_driver_that_kills_the_worker_is_tried_once(tmp_path):
    verdicts = DeviceVerdicts(tmp_path)
    file = ModelFile(name="m", path="/dev/null", format=ModelFormat.ONNX_ENCODER, sha256="d" * 64, context_tokens=64)
    command = [*fake_worker.COMMAND, "--crash-on-device"]
    pool = EnginePool(EngineSettings(), lambda name: file, worker_command=command, verdicts=verdicts)
    await pool.make_ready("m")
    status = pool.status()["m"]
    assert (status.state, status.crashes) == (WorkerState.READY, 1)
    await pool.stop(0)
    (one,) = verdicts.known("d" * 64)
    assert (one.kind, one.provider, one.holds) == (DeviceKind.NPU, "FakeNpu", False)
    assert one.reason.startswith("the worker died of signal 11 (SIGSEGV)")


async def test_the_worker_of_an_encoder_is_locked_in_and_tells_its_device(tmp_path):
    file = plain.model_file(plain.embedder(tmp_path / "m"))
    pool = EnginePool(EngineSettings(threads=1), lambda name: file, verdicts=DeviceVerdicts(tmp_path))
    await pool.make_ready("m")
    status = pool.status()["m"]
    encoded = await pool.encode("m", frames.Encode(id=0, texts=("good",)), 60_000)
    await pool.stop(0)
    assert encoded.width == 4
    assert status.device.used.kind is DeviceKind.CPU
    assert "rlimits" in status.confinement
    assert [one.provider for one in DeviceVerdicts(tmp_path).known("e" * 64)] == ["CPUExecutionProvider"]
