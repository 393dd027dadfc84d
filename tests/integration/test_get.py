"""``models pick`` and ``get`` with the real engine, on models with random weights: quick, and of no worth."""

import json
import signal
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from fakes import tiny_gguf
from fakes.command_line import outrider as daemon_outrider
from fakes.daemon_process import DaemonProcess
from fakes.gguf import STRING, with_metadata
from fakes.hub import hub
from fakes.measured import candidate
from fakes.short_measuring import STEPS, shorten

from agent.cli import get as get_module
from agent.cli.main import cli
from agent.evaluation import measuring
from agent.models.aliases import DEFAULT, Aliases
from agent.models.getting import Begun
from agent.models.store import open_store

DEMO = "smollm2-135m-instruct"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path, monkeypatch):
    (tmp_path / "outrider.toml").write_text("[engine]\nthreads = 1\n")
    monkeypatch.setenv("OUTRIDER_CONFIG", str(tmp_path / "outrider.toml"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shorten(monkeypatch.setattr)
    return tmp_path / "data"


def outrider(data, *arguments, code=0, stdin=""):
    result = CliRunner().invoke(cli, ["--data-dir", str(data), *arguments], input=stdin, prog_name="outrider")
    assert code in {None, result.exit_code}, result.stdout + result.stderr
    return result


def default(data):
    return Aliases(open_store(data).blobs.root, DEMO).target(DEFAULT)


def source(tmp_path, name="Tiny.gguf", seed=1):
    """Write a model that speaks through a template."""
    path = tiny_gguf.write(tmp_path / name, seed=seed)
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    path.write_bytes(with_metadata(path.read_bytes(), [("tokenizer.chat_template", STRING, template)]))
    return path


def test_pick_measures_once_and_takes_the_best(tmp_path, data):
    for seed in (1, 2):
        outrider(data, "pull", str(source(tmp_path, f"tiny-{seed}.gguf", seed)))
    wish = ("models", "pick", "--candidates", "tiny-1,tiny-2", "--memory", "2000")
    refused = outrider(data, *wish, code=65)
    assert "below the floor" in refused.stdout
    assert "no candidate is within the budget" in refused.stderr
    assert default(data) == DEMO
    told = json.loads(outrider(data, *wish, "--force", "--json").stdout)
    assert told["picked"] in {"tiny-1", "tiny-2"}
    assert all(one["candidate"]["kept"] for one in told["verdicts"])
    assert default(data) == told["picked"]
    assert open_store(data).resolve(told["picked"])
    too_much = outrider(data, "models", "pick", "--candidates", "tiny-1", "--memory", "20", code=65)
    assert "20 MiB are what --memory allows" in too_much.stdout


def test_pick_for_a_phone_writes_its_budget(tmp_path, data, monkeypatch):
    outrider(data, "pull", str(source(tmp_path)))
    monkeypatch.setattr(measuring.Measuring, "candidate", lambda self, name, budget: candidate(name))
    wish = ("models", "pick", "--profile", "phone", "--candidates", "tiny")
    assert "or say --write" in outrider(data, *wish).stderr
    outrider(data, *wish, "--write")
    engine = tomllib.loads((tmp_path / "outrider.toml").read_text())["engine"]
    assert (engine["context_tokens"], engine["parallel"], engine["memory_mib"]) == (2048, 1, 2048)
    assert 1 <= engine["threads"] <= 4


def test_get_from_a_file_to_the_first_answer(tmp_path, data):
    path = str(source(tmp_path))
    refused = outrider(data, "get", path, code=1)
    assert "say --yes" in refused.stderr
    assert "KiB, licence" in refused.stderr or "MiB, licence" in refused.stderr
    below = outrider(data, "get", path, "--yes", code=65)
    assert "is not good enough" in below.stderr
    assert default(data) == DEMO
    done = outrider(data, "get", path, "--yes", "--force")
    assert default(data) == "tiny-q4_k_m"
    assert "measured before" in done.stdout
    assert "first question" in done.stderr
    assert not (data / "models" / "get.json").exists()
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    again = outrider(data, "get", "tiny-q4_k_m", "--yes", "--force", "--json")
    assert json.loads(again.stdout)["choice"]["picked"] == "tiny-q4_k_m"


@pytest.mark.torture
def test_get_goes_on_after_a_kill_at_each_step(tmp_path, data):
    path = str(source(tmp_path))
    program = [sys.executable, str(ROOT / "tests" / "fakes" / "short_measuring.py")]
    wish = ["--data-dir", str(data), "get"]
    for number, step in enumerate(STEPS):
        more = [path, "--yes", "--force"] if number == 0 else ["--force"]
        run = subprocess.run([*program, step, *wish, *more], capture_output=True, text=True, check=False)
        assert run.returncode == -signal.SIGKILL, run.stderr
        Path(path).unlink(missing_ok=True)  # the stick is gone: the model is in the store
        assert default(data) == ("tiny-q4_k_m" if step == "_first_answer" else DEMO)
    stopped = subprocess.run([*program, "take^C", *wish, "--force"], capture_output=True, text=True, check=False)
    assert (stopped.returncode, stopped.stderr.splitlines()[-1]) == (130, "outrider: stopped")
    run = subprocess.run([*program, "none", *wish, "--force"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "going on with" in run.stderr
    assert "measured before" in run.stdout
    assert default(data) == "tiny-q4_k_m"


def test_get_offline_takes_what_is_here_and_says_when_that_is_only_the_demo(data, monkeypatch):
    monkeypatch.setattr(measuring.Measuring, "candidate", lambda self, name, budget: candidate(name, demo=True))
    monkeypatch.setattr(measuring.Measuring, "speed", lambda self, name: None)
    monkeypatch.setattr(get_module._Getting, "_first_answer", lambda self, name: "Paris.")
    done = outrider(data, "get", "--yes", "--offline")
    assert "only the demo model is on this device" in done.stderr
    assert "Paris." in done.stdout
    fallen_back = outrider(data, "get", "--yes")
    assert "HF_HUB_OFFLINE forbids to download it" in fallen_back.stderr
    refused = outrider(data, "get", "qwen3-0.6b", "--yes", code=69)
    assert "HF_HUB_OFFLINE" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("get", "minilm-l6-v2-int8", "--yes"), "answers no questions"),
        (("get", "--profile", "npu", "--yes"), "none can be the default"),
        (("models", "pick", "--profile", "npu"), "none can be the default"),
        (("get", "qwen3-0.6", "--yes"), "did you mean qwen3-0.6b"),
        (("models", "pick", "--candidates", "qwen3-0.6b"), "outrider pull qwen3-0.6b"),
        (("get", "--memory", "50", "--yes", "--offline"), "no model fits this device"),
    ],
)
def test_what_makes_no_sense_is_refused(data, arguments, told):
    assert told in outrider(data, *arguments, code=2).stderr


def test_what_is_gone_when_a_call_goes_on_is_forgotten(data, tmp_path):
    begun = data / "models" / "get.json"
    Begun(given="x.gguf", model="x.gguf", profile="cpu").write(begun)
    assert "going on" in outrider(data, "get", code=None).stderr
    assert not begun.exists()
    begun.write_text("{")
    assert Begun.read(begun) is None


def test_the_first_answer_of_the_demo_model_offers_a_better_one_once(tmp_path):
    daemon = DaemonProcess(tmp_path / "device").start()
    first, second = (daemon_outrider(daemon, "ask", "hello", *more) for more in ((), ("--stream",)))
    assert "(demo model)" in first.stderr
    assert "outrider get" in first.stderr
    assert "(demo model)" in second.stderr
    assert "outrider get" not in second.stderr
    assert daemon.stop() == 0


def test_get_from_a_hub_asks_for_the_licence_and_is_refused_without_anybody_to_answer(tmp_path, data, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(measuring.Measuring, "candidate", lambda self, name, budget: candidate(name))
    monkeypatch.setattr(get_module._Getting, "_first_answer", lambda self, name: "Paris.")
    monkeypatch.setattr(get_module._Getting, "made_smaller", lambda self, source: source)
    with hub() as server:
        server.files = {"tiny-q8.gguf": source(tmp_path).read_bytes()}
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        refused = outrider(data, "get", "owner/tiny:tiny-q8.gguf", code=1)
        assert "licence apache-2.0" in refused.stderr
        assert open_store(data).get("tiny-q8") is None
        agreed = outrider(data, "get", "owner/tiny:tiny-q8.gguf", stdin="y\n")
    assert "default is tiny-q8, before: smollm2" in agreed.stderr
    assert default(data) == "tiny-q8"
