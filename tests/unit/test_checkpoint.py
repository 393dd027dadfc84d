"""What is said of a Hugging Face checkpoint before anything of it is run."""

import hashlib
import json
import struct
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import msgspec
import pytest

from agent.errors import DiskFull, InvalidRequest, ModelRejected, WrongState
from agent.models import build_env, checkpoint, size_limit
from agent.models.build_env import BuildEnvironment
from agent.models.converting import quantize_any
from agent.models.quantizing import Wish
from agent.models.store import open_store

CONFIG = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}


def weights(path, *, kinds=("BF16",), cut=0):
    header, at = {}, 0
    for number, kind in enumerate(kinds):
        size = 8 * {"F32": 4, "I64": 8, "F8_E4M3": 1}.get(kind, 2)
        header[f"w{number}"] = {"dtype": kind, "shape": [2, 4], "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    path.write_bytes((struct.pack("<Q", len(raw)) + raw + b"\0" * at)[: -cut or None])


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "Qwen3 Tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    weights(folder / "model.safetensors")
    return folder


def test_what_the_files_say(folder):
    found = checkpoint.look(folder)
    assert (found.architecture, found.parameters, found.kind) == ("qwen3", 8, "bf16")
    weights(folder / "model-2.safetensors", kinds=("F32", "BF16"))
    assert checkpoint.look(folder).kind == "f32"  # neither half holds the other without loss


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architectures": ["PerceptronModel"]}, "PerceptronModel is not converted"),
        ({"architectures": None}, "is not converted"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "never run"),
        ({"quantization_config": {"bits": 4}}, "quantized already"),
    ],
)
def test_configurations_that_are_refused(folder, change, said):
    (folder / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(ModelRejected, match=said):
        checkpoint.look(folder)


GEMMA3 = {"architectures": ["Gemma3ForCausalLM"], "head_dim": 32, "query_pre_attn_scalar": 32}
PHI3 = {"architectures": ["Phi3ForCausalLM"], "sliding_window": 2047}


def found(folder, **config):
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").touch()
    return checkpoint.look(folder)


def test_what_llama_cpp_assumes_of_gemma3_and_phi3_is_looked_for(folder):
    assert found(folder, **GEMMA3).fault == ""
    assert found(folder, **PHI3).fault == ""
    assert found(folder, **PHI3).context_tokens == 2047  # beyond, the layers of the original see less than all
    assert "head_dim" in found(folder, **GEMMA3 | {"query_pre_attn_scalar": 256}).fault
    assert "base 20000" in found(folder, **GEMMA3, rope_local_base_freq=20000).fault
    assert "scaled" in found(folder, **GEMMA3, rope_scaling={"rope_type": "linear", "factor": 8}).fault
    assert "sixth" in found(folder, **GEMMA3, layer_types=["full_attention"] * 6).fault
    assert "longrope" in found(folder, **PHI3, rope_scaling={"type": "longrope", "long_factor": [1.0]}).fault
    (folder / "tokenizer.model").unlink()
    for config in (GEMMA3, PHI3):
        (folder / "config.json").write_text(json.dumps(config))
        assert "no tokenizer.model" in checkpoint.look(folder).fault


def test_such_a_checkpoint_is_not_converted(folder, tmp_path):
    found(folder, **GEMMA3 | {"query_pre_attn_scalar": 256})
    with pytest.raises(ModelRejected, match="not converted to GGUF: its attention is scaled"):
        quantize_any(open_store(tmp_path / "data"), tmp_path / "data", Wish(source=str(folder)), lambda _: None)


@pytest.mark.parametrize(
    ("name", "more", "task"),
    [
        ("BertModel", {}, "embed"),
        ("XLMRobertaForSequenceClassification", {"id2label": {"0": "no", "1": "yes"}}, "classify"),
        ("ModernBertForSequenceClassification", {"id2label": {"0": "LABEL_0"}}, "rerank"),
        ("DistilBertForTokenClassification", {}, "tag"),
    ],
)
def test_encoders_are_known_by_their_class(folder, name, more, task):
    weights(folder / "model.safetensors", kinds=("F32", "I64"))
    assert found(folder, architectures=[name], **more).encoder == task
    with pytest.raises(ModelRejected, match="BertForPreTraining is not converted"):
        found(folder, architectures=["BertForPreTraining"])


def test_weights_that_are_refused(folder):
    weights(folder / "model.safetensors", cut=3)
    with pytest.raises(ModelRejected, match="it is cut off"):
        checkpoint.look(folder)
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ModelRejected, match="a header of"):
        checkpoint.look(folder)
    weights(folder / "model.safetensors", kinds=("F8_E4M3",))
    with pytest.raises(ModelRejected, match="F8_E4M3"):
        checkpoint.look(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelRejected, match="pickled"):
        checkpoint.look(folder)


def test_without_the_environment_it_is_said_what_to_do(folder, tmp_path):
    store = open_store(tmp_path / "data")
    with pytest.raises(WrongState, match=r"--setup` .*without a network"):
        quantize_any(store, tmp_path / "data", Wish(source=str(folder), recipe="gguf-q4_k_m"), lambda _: None)
    with pytest.raises(WrongState, match="--setup --environment generation"):
        quantize_any(store, tmp_path / "data", Wish(source=str(folder), recipe="onnx-int4"), lambda _: None)
    (folder / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    with pytest.raises(WrongState, match="--setup`"):
        quantize_any(store, tmp_path / "data", Wish(source=str(folder)), lambda _: None)


def test_a_checkpoint_above_the_limit_is_refused_unless_forced(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(size_limit, "MOST_PARAMETERS", 4)
    for recipe in ("gguf-q4_0", "onnx-int4"):
        with pytest.raises(InvalidRequest, match=r"up to 0.0 billion.*--force"):
            quantize_any(open_store(tmp_path), tmp_path, Wish(source=str(folder), recipe=recipe), lambda _: None)
        with pytest.raises(WrongState, match="--setup"):
            quantize_any(
                open_store(tmp_path), tmp_path, Wish(source=str(folder), recipe=recipe, force=True), lambda _: None
            )


def test_an_environment_is_not_made_from_nothing(tmp_path, monkeypatch):
    environment = BuildEnvironment(tmp_path)
    with pytest.raises(InvalidRequest, match="--find-links"):
        environment.make(lambda _: None, offline=True, find_links=None)
    monkeypatch.setattr(environment, "kind", msgspec.structs.replace(environment.kind, needed_bytes=1 << 60))
    with pytest.raises(DiskFull, match="GiB free"):
        environment.make(lambda _: None, offline=True, find_links=tmp_path)
    assert not environment.ready
    assert environment.remove()
    assert not environment.remove()


def test_a_source_with_another_digest_is_not_unpacked(tmp_path):
    archive = tmp_path / "llama_cpp_python-0.3.36.tar.gz"
    archive.write_bytes(b"something else")
    with pytest.raises(InvalidRequest, match="is not the source"):
        BuildEnvironment(tmp_path)._unpack(archive)


def test_of_the_source_the_converter_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter", raising=False)  # as in the Python of Debian 12
    archive = tmp_path / "source.tar.gz"
    with tarfile.open(archive, "w:gz") as writer:
        for name in ("vendor/llama.cpp/convert_hf_to_gguf.py", "vendor/llama.cpp/gguf-py/gguf/x.py", "setup.py"):
            writer.add(__file__, f"llama_cpp_python-0.3.36/{name}")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(build_env, "SOURCES", {version("llama-cpp-python"): digest})
    environment = BuildEnvironment(tmp_path)
    environment._unpack(archive)
    assert environment.converter.read_bytes() == Path(__file__).read_bytes()
    assert (environment.converter.parent / "gguf-py" / "gguf" / "x.py").is_file()
    assert not list(environment.root.rglob("setup.py"))


def test_a_program_of_the_environment_ends_with_the_one_who_asked(tmp_path):
    from agent.models.recipes.environment_program import BOUND, RUN_FILE

    script = tmp_path / "forever.py"
    script.write_text("import sys, time\nprint(sys.argv[1], flush=True)\ntime.sleep(600)\n")
    command = [sys.executable, "-c", BOUND + RUN_FILE, str(script), "started"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"started\n"
        child.stdin.close()
        assert child.wait(timeout=30) == 1


def test_a_tokenizer_of_another_kind_is_refused(tmp_path):
    from agent.models.gguf_check import GgufHeader
    from agent.models.recipes.checkpoint_to_gguf import _require_tokenizer

    def made(kind):
        return GgufHeader(
            version=3, architecture="llama", context_tokens=1, vocabulary=1, tensors=1, metadata=1,
            has_chat_template=False, scalars={"tokenizer.ggml.model": kind},
        )  # fmt: skip

    (tmp_path / "tokenizer.json").write_text('{"pre_tokenizer": {"type": "ByteLevel"}}')
    _require_tokenizer(tmp_path, made("gpt2"))
    with pytest.raises(ModelRejected, match="otherwise"):
        _require_tokenizer(tmp_path, made("llama"))
