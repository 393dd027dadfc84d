"""A build by onnxruntime-genai that was finished before a stop is compared, and not made again."""

import json
from pathlib import Path

import pytest

from agent.models.recipes import checkpoint_to_generation as recipe
from agent.models.recipes.job import Job

SETTINGS = {"model": {"context_length": 512, "decoder": {"session_options": {}}}, "search": {}}


class Programs:
    """Stands for the build environment: writes what the builder would, and stops where it is told."""

    def __init__(self):
        self.stop_at, self.builds, self.comparisons = None, 0, 0

    def __call__(self, environment, program, arguments, follow, *, what):
        built = Path(arguments[1])
        if "runpy" in program:
            self.builds += 1
            assert not built.exists()  # what was half made is gone
            built.mkdir()
            (built / "genai_config.json").write_text(json.dumps(SETTINGS))
            follow(b"Reading layer 0\n")
            self._stop("building")
            (built / "model.onnx").write_bytes(b"graph")
        follow(b"COMPARING\n")
        self._stop("comparing")
        self.comparisons += 1
        follow(b"AGREEMENT 0.97 0.01 256\n")

    def _stop(self, where):
        if self.stop_at == where:
            raise KeyboardInterrupt


@pytest.fixture
def programs(monkeypatch):
    found = Programs()
    monkeypatch.setattr(recipe, "run_program", found)
    return found


@pytest.fixture
def job(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text('{"num_hidden_layers": 2}')
    (source / "tokenizer.json").write_text("{}")
    folder = tmp_path / "folder"
    folder.mkdir()
    return Job(
        recipe="generation-int8",
        source=str(source),
        folder=str(folder),
        output="made",
        threads=1,
        environment=str(tmp_path),
    )


@pytest.mark.parametrize(("stop_at", "builds"), [("building", 2), ("comparing", 1)])
def test_what_is_finished_is_not_made_again(programs, job, stop_at, builds):
    programs.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        recipe.make(job, lambda _: None)
    programs.stop_at = None
    made = recipe.make(job, lambda _: None)
    assert (programs.builds, programs.comparisons) == (builds, 1)
    assert {"model.onnx", "genai_config.json", "tokenizer.json"} <= {*made.files}
    assert all(Path(job.folder, name).is_file() for name in made.files)
    assert "97.0%" in made.remark
