"""GGUF to GGUF in a real child with the real llama.cpp, on a model with random weights."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from fakes import tiny_gguf

from agent import executable
from agent.cli.main import cli
from agent.errors import DiskFull, EngineFailed, InvalidRequest, ModelNotFound, ModelRejected, StorageError, WrongState
from agent.models import quantizing, size_limit
from agent.models.gguf_check import check_gguf
from agent.models.quantizing import Wish, quantize
from agent.models.recipes import RECIPES
from agent.models.recipes.importance import read
from agent.models.recipes.tensor_types import TARGETS, expected_bytes, precision
from agent.models.store import open_store


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "data")


@pytest.fixture
def source(tmp_path):
    return tiny_gguf.write(tmp_path / "Tiny F16.gguf")


def made(store, source, recipe="gguf-q8_0", **more):
    seen = []
    more = {"importance": "none"} | more
    return quantize(store, Wish(source=str(source), recipe=recipe, **more), seen.append), seen


def leftovers(store):
    making = store.blobs.root / "making"
    return [path for path in making.rglob("*") if path.is_file() and path.suffix != ".lock"] if making.exists() else []


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name in TARGETS and name != "gguf-f16"])
def test_each_type_is_made_and_taken_into_the_store_with_its_record(store, source, recipe):
    outcome, seen = made(store, source, recipe)
    model = store.get(outcome.model.name)
    assert model == outcome.model
    assert store.verify(model.name).sha256 == model.digest
    assert model.making.recipe == recipe
    assert model.making.parent_digest == quantizing.find_source(store, str(source)).digest
    assert {"outrider", "llama.cpp", "llama-cpp-python"} <= model.making.versions.keys()
    header = check_gguf(store.blobs.path(model.digest))
    assert header.shapes == check_gguf(source).shapes
    assert precision(header).bits < 9
    assert model.bytes <= expected_bytes(check_gguf(source), TARGETS[recipe], source.stat().st_size)
    assert (seen[-1].done, seen[-1].total) == (20, 20)
    assert not leftovers(store)


def test_the_same_wish_is_not_done_twice_and_another_does_not_replace_it(store, source, tmp_path):
    first, _ = made(store, source)
    again, seen = made(store, source)
    assert again.was_there
    assert again.model == first.model
    assert not seen
    other = tiny_gguf.write(tmp_path / "other.gguf", seed=2)
    with pytest.raises(WrongState, match="--name"):
        made(store, other, name=first.model.name)
    replaced, _ = made(store, other, name=first.model.name, force=True)
    assert replaced.model.digest != first.model.digest
    with pytest.raises(WrongState, match="manifest"):
        made(store, source, name="smollm2-135m-instruct")


def test_what_is_rounded_already_is_refused_unless_forced_and_the_record_says_so(store, source):
    small, _ = made(store, source, "gguf-q4_0")
    with pytest.raises(InvalidRequest, match="rounded twice"):
        made(store, small.model.name, "gguf-iq4_xs")
    with pytest.raises(InvalidRequest, match="gains nothing"):
        made(store, small.model.name, "gguf-q8_0")
    back, _ = made(store, small.model.name, "gguf-f16", force=True)
    assert "does not come back" in back.warnings[0]
    twice, _ = made(store, back.model.name, "gguf-q8_0")
    assert "rounded before, to Q4_0" in twice.model.remark
    with pytest.raises(InvalidRequest, match="is Q8_0"):
        made(store, twice.model.name, "gguf-q8_0", name="again")


def test_a_phone_gets_a_short_context_and_a_ceiling(store, source, monkeypatch):
    outcome, _ = made(store, source, "gguf-q4_0", target="phone")
    assert outcome.model.name.endswith("-phone")
    assert outcome.model.context_tokens == quantizing.PHONE_CONTEXT
    monkeypatch.setattr(quantizing, "PHONE_MEMORY", 1 << 20)
    with pytest.raises(InvalidRequest, match="ceiling"):
        made(store, source, "gguf-q4_0", target="phone", name="other")


@pytest.mark.parametrize("old", [False, True])
def test_an_importance_matrix_changes_the_bytes_and_stands_in_the_record(store, source, tmp_path, old):
    path = tiny_gguf.write_importance(tmp_path / "imatrix.gguf", old=old)
    plain, _ = made(store, source, "gguf-iq4_xs")
    weighed, _ = made(store, source, "gguf-iq4_xs", importance=str(path), name="weighed")
    assert weighed.model.digest != plain.model.digest
    assert weighed.model.making.inputs["importance_sha256"] == read(path).digest
    values = read(path).means["blk.0.ffn_down.weight"]
    assert values.size == tiny_gguf.HIDDEN
    assert values[0] == pytest.approx(0.5)


@pytest.mark.parametrize("old", [False, True])
def test_an_importance_matrix_that_does_not_hold_is_refused(store, source, tmp_path, old):
    path = tiny_gguf.write_importance(tmp_path / "broken.gguf", old=old, broken=True)
    with pytest.raises(ModelRejected):
        made(store, source, "gguf-iq4_xs", importance=str(path))
    assert store.get("tiny-iq4_xs") is None


def test_the_model_itself_shows_what_matters_and_the_step_is_kept(store, source, monkeypatch):
    seen = []
    wish = Wish(source=str(source), recipe="gguf-iq4_xs", importance="auto")

    def stop(progress):
        seen.append(progress.step)
        if progress.step == "quantizing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(store, wish, stop)
    assert "finding what matters" in seen
    assert [path.name[:11] for path in leftovers(store) if path.suffix == ".npz"] == ["importance-"]
    seen.clear()
    outcome = quantize(store, wish, lambda progress: seen.append(progress.step))
    assert "finding what matters" not in seen
    assert len(outcome.model.making.inputs["importance_sha256"]) == 64
    assert not leftovers(store)


def test_bad_sources(store, source, tmp_path, monkeypatch):
    with pytest.raises(ModelNotFound, match="no file"):
        made(store, tmp_path / "nothing.gguf")
    with pytest.raises(ModelNotFound, match="did you mean smollm2-135m-instruct"):
        made(store, "smollm2-135m-instuct")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(source.read_bytes()[:-1000])
    with pytest.raises(ModelRejected, match="truncated"):
        made(store, cut)
    with pytest.raises(ModelRejected, match="unknown model architecture"):
        made(store, tiny_gguf.write(tmp_path / "odd.gguf", architecture="perceptron"))
    with pytest.raises(InvalidRequest, match="there are gguf-f16"):
        made(store, source, "gguf-q1")
    monkeypatch.setattr(size_limit, "MOST_PARAMETERS", 1000)
    with pytest.raises(InvalidRequest, match="--force"):
        made(store, source)
    assert not leftovers(store)


def test_too_little_space_is_said_before_anything_is_made(store, source, monkeypatch):
    monkeypatch.setattr(quantizing.shutil, "disk_usage", lambda _: quantizing.shutil._ntuple_diskusage(1, 1, 1000))
    with pytest.raises(DiskFull, match="MiB are free"):
        made(store, source)


def test_a_write_that_fails_leaves_nothing(store, source, monkeypatch):
    command = ["prlimit", "--fsize=100000", "--", *executable.command("quantize-worker")]
    monkeypatch.setattr(executable, "command", lambda *_: command)
    with pytest.raises((StorageError, EngineFailed)):
        made(store, source)
    assert store.get("tiny-q8_0") is None
    assert not list((store.blobs.root / "blobs").iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_that_cannot_be_written(store, source):
    store.blobs.prepare()
    store.blobs.root.chmod(0o500)
    with pytest.raises(StorageError, match="permissions"):
        made(store, source)


def test_a_child_that_dies_is_named_and_leaves_nothing(store, source):
    def kill(_):
        for child in children():
            os.kill(child, signal.SIGKILL)

    with pytest.raises(EngineFailed, match="signal 9"):
        quantize(store, Wish(source=str(source), recipe="gguf-q8_0"), kill)
    assert store.get("tiny-q8_0") is None


def children():
    found = Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children").read_text()
    return [int(pid) for pid in found.split()]


def test_kill_9_of_the_program_ends_the_child_and_leaves_no_half_model(store, source, tmp_path):
    data = tmp_path / "data"
    command = [
        sys.executable,
        "-m",
        "agent",
        "--data-dir",
        str(data),
        "quantize",
        str(source),
        "--recipe",
        "gguf-iq4_xs",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as program:
        program.stderr.readline()  # "finding what matters ...": the child is at work
        worker = int(Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()[0])
        program.kill()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{worker}").exists()
    assert store.names() == [spec.name for spec in store.manifest.models]
    outcome, _ = made(store, source, "gguf-iq4_xs", importance="auto")
    assert store.verify(outcome.model.name).state == "installed"
    assert not leftovers(store)


def test_the_command_line_says_what_it_made(tmp_path, source):
    arguments = [
        "--data-dir",
        str(tmp_path / "data"),
        "quantize",
        str(source),
        "--no-importance",
        "--no-measure",
        "--json",
    ]
    result = CliRunner().invoke(cli, arguments, prog_name="outrider")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["model"]["name"] == "tiny-q4_k_m"
    assert told["model"]["making"]["inputs"] == {"importance": "none"}
    again = CliRunner().invoke(cli, arguments[:-1], prog_name="outrider")
    assert "made before" in again.stderr
    assert "tiny-q4_k_m" in again.stdout
    refused = CliRunner().invoke(cli, [*arguments[:3], "no-such-model", "--json"], prog_name="outrider")
    assert refused.exit_code == 2
    assert json.loads(refused.stderr)["error"]["code"] == "model_not_found"
