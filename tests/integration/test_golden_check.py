"""A model whose bytes hold and that computes something else than its source is found out, and not served."""

import hashlib
from types import SimpleNamespace

import msgspec
import pytest
from fakes import measured, tiny_gguf
from fakes.command_line import as_json, outrider

from agent.device import profile
from agent.errors import ModelRejected
from agent.evaluation.quality import GOLDEN_WINDOWS, Plan, read_texts, shipped_text, windows_of
from agent.evaluation.steps import Steps
from agent.models.first_load import FirstLoad
from agent.models.quality import Golden
from agent.models.quantizing import Wish, quantize
from agent.models.store import open_store
from agent.settings import EngineSettings

ENGINE = EngineSettings(threads=1)


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    source = tiny_gguf.write(folder / "Tiny F16.gguf", chats=True)
    store = open_store(folder / "data")
    name = quantize(store, Wish(source=str(source), recipe="gguf-q8_0"), lambda _: None).model.name
    config = folder / "outrider.toml"
    config.write_text(f'data_dir = "{folder / "data"}"\n[engine]\nthreads = 1\n')
    steps, text = Steps(), shipped_text()
    plan = Plan(model=store.resolve(name), reference=None, texts=(text,), engine=ENGINE, longest_context=0)
    read_texts(plan, lambda _: None, steps)
    said = tuple(token for window in windows_of(text, steps)[:GOLDEN_WINDOWS] for token in window.likeliest)
    return SimpleNamespace(config=config, folder=folder, store=store, name=name, said=said)


def keep(device, likeliest, text=None):
    digest = hashlib.sha256((text or shipped_text().text).encode()).hexdigest()
    golden = Golden(reference="its source", reference_digest="5" * 64, text_digest=digest, likeliest=likeliest)
    stored = device.store.get(device.name)
    quality = msgspec.structs.replace(measured.quality(15, 1.0), digest=stored.digest, golden=golden)
    device.store.note(device.name, quality=quality)


def test_what_a_processor_computes_wrongly_is_not_served(device):
    assert as_json(device, "models", "verify", device.name)[0]["ok"]  # nothing is kept to compare with
    keep(device, device.said)
    assert as_json(device, "models", "verify", device.name)[0]["ok"]
    keep(device, tuple(token + 1 for token in device.said))
    assert as_json(device, "models", "verify", device.name, "--no-answers")[0]["ok"]
    refused = outrider(device, "models", "verify", device.name, code=65)
    assert "says what its source says at 0% of" in refused.stdout
    with pytest.raises(ModelRejected, match=r"agrees with its source \(its kept answers\) on 0%"):
        device.store.resolve(device.name)
    keep(device, (*device.said[:-1], 0))  # measured anew
    assert device.store.resolve(device.name).name == device.name


def test_a_bundle_is_tried_where_it_comes_in(device, tmp_path):
    keep(device, tuple(token + 1 for token in device.said))
    file = tmp_path / "b.outrider"
    key = as_json(device, "bundle", "export", device.name, str(file))["key"]
    config = tmp_path / "other.toml"
    config.write_text(f'data_dir = "{tmp_path / "data"}"\n[engine]\nthreads = 1\n')
    other = SimpleNamespace(config=config)
    told = outrider(other, "bundle", "import", str(file), "--trust", key)
    assert "this processor computes something else" in told.stderr
    with pytest.raises(ModelRejected, match="below the floor"):
        open_store(tmp_path / "data").resolve(device.name)


def test_what_was_measured_elsewhere_is_tried_before_it_is_first_loaded(device):
    here = FirstLoad(device.store, profile().cpu_model)
    keep(device, device.said)  # measured on a "chip" that is none
    assert here(device.name).name == device.name
    assert device.store.get(device.name).checked_on == profile().cpu_model
    keep(device, tuple(token + 1 for token in device.said))
    assert here(device.name).name == device.name  # it was looked at, and is not again
    device.store.note(device.name, checked_on="")
    with pytest.raises(ModelRejected, match="below the floor"):
        here(device.name)


def test_answers_to_another_text_are_no_measure(device):
    keep(device, (1, 2, 3), text="of another release")
    assert as_json(device, "models", "verify", device.name)[0]["ok"]
