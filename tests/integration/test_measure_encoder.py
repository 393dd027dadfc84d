"""An encoder beside its source, in the worker that serves it. One layer with random weights."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from fakes import tiny_encoder

from agent.cli.main import cli
from agent.evaluation.encoders import compare
from agent.models.artifact import Making, StoredModel
from agent.models.blobs import described
from agent.models.store import open_store
from agent.types import ModelFormat


def keep(store, folder, name, making=None):
    files = {path.name: path for path in sorted(folder.iterdir())}
    model = StoredModel(
        name=name,
        title=name,
        format=ModelFormat.ONNX_ENCODER,
        files=tuple(described(path, file) for file, path in files.items()),
        licence="MIT",
        source="a test",
        context_tokens=128,
        tasks=("embed",),
        making=making,
    )
    return store.add(model, files)


def run(tmp_path, *arguments):
    return CliRunner().invoke(cli, ["--data-dir", str(tmp_path / "data"), "measure", *arguments], prog_name="outrider")


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("OUTRIDER_ENGINE_THREADS", "1")
    return open_store(tmp_path / "data")


def test_a_copy_is_its_source_and_another_model_is_below_the_floor(store, tmp_path):
    source = keep(store, tiny_encoder.write(tmp_path / "source"), "source")
    made = Making(recipe="onnx-int8", parent="source", parent_digest=source.digest)
    same = tiny_encoder.write(tmp_path / "same")
    (same / "config.json").write_text((same / "config.json").read_text() + "\n")
    keep(store, same, "same", made)
    keep(store, tiny_encoder.write(tmp_path / "other", seed=5), "other", made)

    result = run(tmp_path, "same", "--json")
    assert result.exit_code == 0, result.output
    quality = json.loads(result.stdout)["quality"]
    assert quality["reference"] == "source"
    assert quality["encoder"]["cosine"] == pytest.approx(1, abs=1e-5)
    assert quality["encoder"]["neighbours"]["value"] == 1
    assert quality["speed"]["tokens_per_second"] > 0

    result = run(tmp_path, "other")
    assert result.exit_code == 65, result.output
    assert "below the floor: its vectors have a cosine of" in result.stderr
    assert "same nearest text" in result.stdout
    assert store.get("other").quality.faults


def test_a_task_is_for_models_that_write(store, tmp_path):
    keep(store, tiny_encoder.write(tmp_path / "source"), "source")
    task = tmp_path / "task.jsonl"
    task.write_text("".join(f'{{"text": "car {at}", "label": "{at % 2}"}}\n' for at in range(10)))
    result = run(tmp_path, "source", "--task", str(task))
    assert result.exit_code == 2, result.output
    assert "models that write" in result.stderr


def test_neighbours_are_compared_where_vectors_cannot_be():
    rows = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], np.float32)
    wider = np.pad(rows, ((0, 0), (0, 3)))
    assert compare(rows, wider).cosine is None
    assert compare(rows, wider).neighbours.value == 1
    turned = compare(rows, rows[:, ::-1].copy())
    assert turned.cosine < 0.3
    assert turned.neighbours.value == 1  # who is near whom is the same
    elsewhere = compare(rows, rows[[0, 2, 1, 3]])
    assert elsewhere.neighbours.value == 0
    broken = compare(np.full((4, 2), np.nan, np.float32), rows)
    assert broken.cosine == 0
