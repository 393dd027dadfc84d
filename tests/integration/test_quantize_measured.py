"""What a quantization has cost stands beside its source as soon as it is made."""

import json
import struct

import pytest
from click.testing import CliRunner
from fakes import tiny_gguf

from agent.cli.main import cli
from agent.evaluation import quality as evaluation
from agent.evaluation.measure_worker import Text
from agent.evaluation.measuring import parent_of
from agent.models.artifact import Making, StoredModel
from agent.models.blobs import described
from agent.models.quantizing import Wish, quantize
from agent.models.store import open_store
from agent.types import ModelFormat


def run(tmp_path, *arguments):
    return CliRunner().invoke(cli, ["--data-dir", str(tmp_path / "data"), *arguments], prog_name="outrider")


def made(tmp_path, **kinds):
    source = tiny_gguf.write(tmp_path / "Tiny F16.gguf", **kinds)
    wish = Wish(source=str(source), recipe="gguf-q8_0", importance="none")
    return quantize(open_store(tmp_path / "data"), wish, lambda _: None).model


def keep_checkpoint(store, folder):
    """Take a checkpoint, which no runtime reads, into the store; return its digest."""
    folder.mkdir()
    header = json.dumps({"w": {"dtype": "F16", "shape": [2, 4], "data_offsets": [0, 16]}}).encode()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\1" * 16)
    files = {path.name: path for path in folder.iterdir()}
    model = StoredModel(
        name=folder.name,
        title="Folder",
        format=ModelFormat.CHECKPOINT,
        files=tuple(described(path, name) for name, path in files.items()),
        licence="MIT",
        source="a test",
        context_tokens=512,
    )
    return store.add(model, files).digest


def test_the_table_stands_there_before_and_after_and_nothing_is_measured_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("OUTRIDER_ENGINE_THREADS", "1")
    monkeypatch.setenv("OUTRIDER_ENGINE_CONTEXT_TOKENS", "512")
    short = Text("shipped text", evaluation.shipped_text().text[:600])
    monkeypatch.setattr(evaluation, "shipped_text", lambda: short)
    source = made(tmp_path, chats=True)
    smaller = ("quantize", source.name, "--recipe", "gguf-q4_0", "--no-importance")
    first = run(tmp_path, *smaller)
    assert first.exit_code == 0, first.output
    table = [line.split("  ") for line in first.stdout.partition("FIGURE")[2].splitlines()]
    rows = {cells[0]: [cell.strip() for cell in cells[1:] if cell.strip()] for cells in table if len(cells) > 1}
    for figure in ("perplexity, shipped text", "instructions followed", "tokens per second", "memory of the worker"):
        assert len(rows[figure]) == 2, rows
        assert "-" not in rows[figure]
    assert rows["same likeliest token, shipped text"][0] == "-"
    assert "measuring tiny-q8_0, once" in first.stderr
    again = run(tmp_path, *smaller, "--json")
    assert "measuring" not in again.stderr
    assert json.loads(again.stdout)["quality"]["reference"] == "tiny-q8_0"


def test_a_model_that_cannot_be_asked_is_made_all_the_same(tmp_path):
    source = made(tmp_path)
    result = run(tmp_path, "quantize", source.name, "--recipe", "gguf-q4_0", "--no-importance")
    assert result.exit_code == 0, result.output
    assert "is made, but not measured" in result.stderr
    assert "no chat template" in result.stderr


@pytest.mark.parametrize("there", [True, False])
def test_the_reference_of_what_comes_from_a_checkpoint_is_its_conversion_without_loss(tmp_path, there):
    store = open_store(tmp_path / "data")
    source = tiny_gguf.write(tmp_path / "Tiny F16.gguf")
    lossless, smaller = (
        quantize(store, Wish(source=str(source), recipe=recipe, importance="none", name=name), lambda _: None).model
        for recipe, name in (("gguf-q8_0", "lossless"), ("gguf-q4_0", "smaller"))
    )
    digest = keep_checkpoint(store, tmp_path / "folder")
    checkpoint = Making(recipe="checkpoint", parent="folder", parent_digest=digest, versions={})
    onnx = Making(recipe="onnx-int4", parent="folder", parent_digest=digest, versions={})
    if there:
        store.note(lossless.name, making=checkpoint)
    store.note(smaller.name, making=onnx)
    found = parent_of(store, smaller.name)
    assert (found.name if found else None) == ("lossless" if there else None)
    assert parent_of(store, "lossless") is None
