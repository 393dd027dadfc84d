"""``outrider tune`` on real weights, and what it says of given measurements."""

import json

import pytest
import tomlkit
from click.testing import CliRunner

from agent.cli import engine_tuning
from agent.cli.config_file import set_config_value
from agent.cli.engine_speed import Cell
from agent.cli.engine_tuning import better_fixed, kv_advice
from agent.cli.main import cli
from agent.engine.worker_status import ThreadChoice
from agent.errors import ConfigError, EngineFailed, InvalidRequest
from agent.settings import EngineSettings
from agent.types import KvType, ModelFile, ModelFormat

MIB = 1 << 20
CHOICE = ThreadChoice(2, 2, "all cores are free")


def cell(kind="decode", **rates):
    return Cell(
        kind=kind, load="as it is", rates={int(name[1:]): (rate,) for name, rate in rates.items()}, choice=CHOICE
    )


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([cell(t0=100, t1=70, t2=101), cell("prefill", t0=200, t1=100, t2=200)], 0),  # not clearly
        ([cell(t0=100, t1=70, t2=110), cell("prefill", t0=200, t1=100, t2=200)], 2),
        ([cell(t0=100, t1=70, t2=110), cell("prefill", t0=200, t1=100, t2=190)], 0),  # not everywhere
        ([cell(t0=40, t1=60, t2=20), cell("prefill", t0=60, t1=80, t2=50)], 1),
    ],
)
def test_a_fixed_number_is_advised_where_it_clearly_beats_the_adaptive_choice(cells, expected):
    assert better_fixed(cells) == expected


@pytest.mark.parametrize(
    ("small", "memory", "value", "why"),
    [(100, 8192, "f16", "it fits"), (100, 512, "q8_0", "memory is short"), (110, 8192, "q8_0", "it is faster")],
)
def test_the_type_of_the_cache(small, memory, value, why):
    cells = {KvType.F16: [cell(t0=100, t2=100)], KvType.Q8_0: [cell(t0=small, t2=small)]}
    advice = kv_advice(cells, {KvType.F16: 23_040, KvType.Q8_0: 12_240}, EngineSettings(), memory * MIB)
    assert (advice.setting, advice.value) == ("engine.kv_type", value)
    assert why in advice.why
    assert "f16 takes 540.0 MiB, q8_0 286.9 MiB" in advice.why


def test_a_value_is_written_beside_what_a_person_wrote(tmp_path):
    path = tmp_path / "outrider.toml"
    path.write_text("# mine\n[engine]\nparallel = 2 # few\n")
    set_config_value(path, "engine", "threads", 2)
    assert path.read_text() == "# mine\n[engine]\nparallel = 2 # few\nthreads = 2\n"
    with pytest.raises(ConfigError, match=r"engine\.threads"):
        set_config_value(path, "engine", "threads", -1)
    assert tomlkit.parse(path.read_text())["engine"]["threads"] == 2
    set_config_value(tmp_path / "new.toml", "engine", "threads", 1)
    assert (tmp_path / "new.toml").read_text() == "[engine]\nthreads = 1\n"


@pytest.mark.model
def test_tune_measures_and_explains(tmp_path, monkeypatch):
    monkeypatch.setattr("agent.cli.tune.QUICK_ROUNDS", 1)
    monkeypatch.setattr("agent.cli.tune.QUICK_STRETCH_S", 0.05)
    monkeypatch.setattr(engine_tuning, "WARM_UP_S", 0.01)
    monkeypatch.setattr(engine_tuning, "better_fixed", lambda _cells: 1)
    config = tmp_path / "outrider.toml"
    config.write_text("")
    ran = CliRunner().invoke(
        cli, ["--config", str(config), "--data-dir", str(tmp_path / "data"), "tune", "--quick", "--write", "--json"]
    )
    assert ran.exit_code == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert {(one["kind"], one["kv_type"], one["threads"]) for one in told["measured"]} >= {
        (kind, kv_type, 0) for kind in ("decode", "prefill") for kv_type in ("f16", "q8_0")
    }
    assert all(one["rate"] > 0 for one in told["measured"])
    assert [one["setting"] for one in told["advice"]] == ["engine.threads", "engine.kv_type"]
    assert tomlkit.parse(config.read_text())["engine"]["threads"] == 1


def test_a_model_whose_threads_are_fixed_is_not_tuned():
    form = ModelFormat.ONNX_GENERATION
    file = ModelFile(name="onnx", path="/nowhere", format=form, sha256="0" * 64, context_tokens=512)
    with pytest.raises(InvalidRequest, match=r"onnxruntime has the threads of engine\.threads"):
        engine_tuning.measure_tuning(file, EngineSettings(), rounds=1, stretch_s=0.01, busy=False, tell=print)


@pytest.mark.model
def test_a_file_that_is_no_model_is_told(tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    file = ModelFile(name="broken", path=str(path), sha256="0" * 64, context_tokens=512)
    with pytest.raises(EngineFailed, match=r"llama\.cpp refuses the file"):
        engine_tuning.measure_tuning(file, EngineSettings(), rounds=1, stretch_s=0.01, busy=False, tell=print)
