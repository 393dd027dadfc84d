"""Adapters: converted exactly or refused with a reason, checked against their base model, known by a digest of their own."""

import hashlib

import numpy as np
import pytest
from fakes import peft
from fakes.gguf import ARRAY, F32, METADATA, STRING, U32, gguf

from agent.errors import ModelNotFound, ModelRejected, OutriderError
from agent.models.adapters import AdapterCatalog, combined_digest
from agent.models.entry import ModelEntry, ModelState
from agent.models.gguf_check import check_gguf
from agent.models.peft_conversion import convert, read_safetensors, reordered
from agent.settings import AdapterSettings
from agent.types import ModelFile, ModelFormat

HEADS = (("llama.attention.head_count", U32, 9), ("llama.attention.head_count_kv", U32, 3))
QUERY = 576 * 576 * 4
BASE = gguf(
    metadata=(*METADATA, *HEADS),
    tensors=(("blk.0.attn_q.weight", (576, 576), 0, 0), ("blk.0.attn_k.weight", (576, 192), 0, QUERY)),
    data=QUERY + 576 * 192 * 4,
)
ADAPTER = (
    ("general.type", STRING, "adapter"),
    ("general.architecture", STRING, "llama"),
    ("adapter.type", STRING, "lora"),
    ("adapter.lora.alpha", F32, 8.0),
)
A, B = ("blk.0.attn_q.weight.lora_a", (576, 4), 0, 0), ("blk.0.attn_q.weight.lora_b", (4, 576), 0, 576 * 16)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.gguf"
    path.write_bytes(BASE)
    return path


def adapter(path, *, metadata=ADAPTER, tensors=(A, B)):
    path.write_bytes(gguf(metadata=metadata, tensors=tensors, data=2 * 576 * 16))
    return path


def catalog(base, path, **settings):
    file = ModelFile(name="small", path=str(base), sha256="b" * 64, context_tokens=4096)
    entry = ModelEntry(
        name="small", title="", format=ModelFormat.GGUF, parameters=None, tasks=("chat",), licence="MIT", state=ModelState.INSTALLED, bytes=1, sha256="b" * 64,
        context_tokens=4096, source="", path=str(base),
    )  # fmt: skip
    given = {"name": "alias", "model": "small", "path": str(path)} | settings
    return AdapterCatalog([AdapterSettings(**given)], {"small": file}.__getitem__, lambda: (entry,))


def test_a_name_stands_for_a_base_an_adapter_and_a_scale(base, tmp_path):
    path = adapter(tmp_path / "a.gguf")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    found = catalog(base, path, scale=0.5, sha256=digest).resolve("alias")
    assert (found.name, found.path, found.context_tokens) == ("alias", str(base), 4096)
    assert (found.adapter.sha256, found.adapter.scale) == (digest, 0.5)
    assert catalog(base, path).resolve("small").adapter is None


def test_another_adapter_scale_or_base_is_another_model(base, tmp_path):
    path = adapter(tmp_path / "a.gguf")
    one = catalog(base, path).resolve("alias")
    digests = {one.sha256, "b" * 64, one.adapter.sha256, catalog(base, path, scale=0.9).resolve("alias").sha256}
    digests.add(combined_digest("c" * 64, one.adapter))
    path.write_bytes(path.read_bytes()[:-1] + b"\2")
    digests.add(catalog(base, path).resolve("alias").sha256)
    assert len(digests) == 6


def test_adapters_are_listed_beside_models_with_their_parent(base, tmp_path):
    known = catalog(base, adapter(tmp_path / "a.gguf"))
    before = {entry.name: entry for entry in known.list()}
    assert (before["alias"].parent, before["small"].parent) == ("small", None)
    digest = known.resolve("alias").sha256
    assert known.list()[-1].sha256 == digest
    assert known.adapter("alias").sha256 == digest
    assert known.adapter("small") is None
    assert [known.find(name) for name in ("small", "alias", "none")] == [*known.list(), None]
    assert catalog(base, tmp_path / "none.gguf").list()[-1].state is ModelState.MISSING


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"metadata": (("general.type", STRING, "model"), *ADAPTER[1:])}, "no LoRA adapter"),
        ({"metadata": (*ADAPTER[:1], ("general.architecture", STRING, "qwen2"), *ADAPTER[2:])}, "architecture qwen2"),
        ({"metadata": ADAPTER[:3]}, "alpha"),
        ({"metadata": (*ADAPTER[:3], ("adapter.lora.alpha", F32, float("nan")))}, "alpha"),
        ({"metadata": (*ADAPTER, ("adapter.alora.invocation_tokens", ARRAY, (U32, [1])))}, "aLoRA"),
        ({"tensors": ()}, "no tensors"),
        ({"tensors": (A,)}, "has .lora_a only"),
        ({"tensors": (("blk.0.attn_norm.weight", (576,), 0, 0),)}, "neither"),
        ({"tensors": (("blk.9.attn_q.weight.lora_a", *A[1:]), ("blk.9.attn_q.weight.lora_b", *B[1:]))}, "no tensor"),
        ({"tensors": (A, (B[0], (4, 192), *B[2:]))}, "another model"),
        ({"tensors": (A, (B[0], (2, 576), *B[2:]))}, "another model"),
        ({"tensors": ((A[0], (576, 4, 1), *A[2:]), B)}, "matrices"),
    ],
)
def test_what_does_not_fit_is_refused(base, tmp_path, changes, says):
    with pytest.raises(ModelRejected, match=says):
        catalog(base, adapter(tmp_path / "a.gguf", **changes)).resolve("alias")


def test_another_file_than_the_configuration_names_is_refused(base, tmp_path):
    path = adapter(tmp_path / "a.gguf")
    with pytest.raises(ModelRejected, match="SHA-256"):
        catalog(base, path, sha256="0" * 64).resolve("alias")
    with pytest.raises(ModelNotFound, match="cannot be read"):
        catalog(base, tmp_path / "none.gguf").resolve("alias")
    path.write_bytes(b"GGUF")
    with pytest.raises(ModelRejected, match="alias"):
        catalog(base, path).resolve("alias")


def test_one_that_cannot_be_served_is_not_called_installed_until_it_can(base, tmp_path, caplog):
    path = adapter(tmp_path / "a.gguf", tensors=())
    known = catalog(base, path)
    known.check()
    assert str(path) in caplog.text  # for the operator alone
    entry = known.list()[-1]
    assert (entry.state, entry.remark) == (ModelState.REFUSED, "adapter alias is refused for small: it has no tensors")
    adapter(path)
    known.resolve("alias")
    assert (known.list()[-1].state, known.list()[-1].remark) == (ModelState.INSTALLED, "")


def test_where_an_adapter_lies_is_told_to_no_caller(base, tmp_path):
    path = adapter(tmp_path / "a.gguf")
    wrong = [
        catalog(base, tmp_path / "none.gguf"),
        catalog(base, peft.write(tmp_path / "peft", peft.matrices())),
        catalog(base, path, sha256="0" * 64),
        catalog(base, adapter(tmp_path / "b.gguf", tensors=())),
    ]
    for known in wrong:
        with pytest.raises(OutriderError) as raised:
            known.resolve("alias")
        assert str(tmp_path) not in str(raised.value)


def test_a_folder_is_refused_with_what_to_do(base, tmp_path):
    with pytest.raises(ModelRejected, match=r"PEFT adapter.*outrider models convert-adapter"):
        catalog(base, peft.write(tmp_path / "peft", peft.matrices())).resolve("alias")


def test_a_converted_adapter_is_accepted(base, tmp_path):
    matrices = peft.matrices(parts=("q_proj", "k_proj"))
    made = convert(peft.write(tmp_path / "peft", matrices), base, tmp_path / "a.gguf")
    assert (made.tensors, made.rank) == (4, 4)
    assert catalog(base, tmp_path / "a.gguf").resolve("alias").adapter is not None
    assert check_gguf(tmp_path / "a.gguf").scalars["adapter.lora.alpha"] == 8
    assert [path.name for path in tmp_path.glob(".adapter-*")] == []


def test_scales_that_differ_by_module_end_up_in_b(base, tmp_path):
    matrices = peft.matrices(parts=("q_proj", "k_proj"))
    plain, patterned, rooted = (tmp_path / f"{name}.gguf" for name in ("plain", "patterned", "rooted"))
    convert(peft.write(tmp_path / "1", matrices), base, plain)
    convert(peft.write(tmp_path / "2", matrices, alpha_pattern={"k_proj": 24}), base, patterned)
    convert(peft.write(tmp_path / "3", matrices, use_rslora=True), base, rooted)
    size = 576 * 4 * 4  # of A; then B of the query, A and B of the key
    one, two, three = (
        np.frombuffer(path.read_bytes()[-(3 * size + size // 3) :], "<f4") for path in (plain, patterned, rooted)
    )
    key, query = slice(-size // 12, None), slice(size // 4, size // 2)
    assert np.allclose(two[key], 3 * one[key])
    assert np.array_equal(two[query], one[query])
    assert np.allclose(three[query], 2 * one[query])  # alpha / sqrt(4) instead of alpha / 4


@pytest.mark.parametrize("pattern", ["(", r"(q)\1"])
def test_a_pattern_that_cannot_be_read_in_linear_time_is_named(base, tmp_path, pattern):
    folder = peft.write(tmp_path / "peft", peft.matrices(parts=("q_proj",)), alpha_pattern={pattern: 24})
    with pytest.raises(ModelRejected, match="alpha_pattern names modules by"):
        convert(folder, base, tmp_path / "a.gguf")


def test_rows_go_from_halves_to_neighbours():
    rows = np.arange(8, dtype=np.float32)[:, None]
    assert reordered(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    with pytest.raises(ModelRejected, match="heads"):
        reordered(rows, 3)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"r": "four"}, "r"),
        ({"r": 0}, "no usable number"),
    ],
)
def test_what_cannot_be_carried_over_is_refused_by_name(base, tmp_path, config, says):
    folder = peft.write(tmp_path / "peft", peft.matrices(), **config)
    with pytest.raises(ModelRejected, match=says):
        convert(folder, base, tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


def test_an_adapter_for_other_sizes_or_tensors_is_not_written(base, tmp_path):
    for number, extra in enumerate(
        (
            {"base_model.model.lm_head.lora_A.weight": np.zeros((4, 576), np.float32)},
            {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.full((4, 576), np.nan, np.float32)},
            {"base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight": np.zeros((4, 576), np.float32)},
        )
    ):
        folder = peft.write(tmp_path / str(number), {}, extra=extra)
        with pytest.raises(ModelRejected):
            convert(folder, base, tmp_path / "a.gguf")
    with pytest.raises(ModelRejected, match=r"no tensor blk\.5"):
        convert(peft.write(tmp_path / "deep", peft.matrices(layers=(5,))), base, tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


def test_sixteen_bit_weights_are_read(tmp_path):
    values = np.array([[1.5, -2.0, 0.25]], np.float32)
    (tmp_path / "a").write_bytes(peft.safetensors({"x": values}, "BF16"))
    ((name, found),) = read_safetensors(tmp_path / "a")
    assert (name, found.tolist()) == ("x", values.tolist())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 16,
        (4).to_bytes(8, "little") + b"null",
        (2).to_bytes(8, "little") + b"[]",
        (30).to_bytes(8, "little") + b'{"x": {"dtype": "F32"}}       ',
        (70).to_bytes(8, "little") + b'{"x": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}'.ljust(70),
        (70).to_bytes(8, "little") + b'{"x": {"dtype": "I64", "shape": [1, 1], "data_offsets": [0, 8]}}'.ljust(78),
        (70).to_bytes(8, "little") + b'{"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}'.ljust(78),
    ],
)
def test_broken_safetensors_are_refused(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ModelRejected, match="safetensors"):
        list(read_safetensors(tmp_path / "a"))


def test_a_model_keeps_its_name_before_an_adapter(base, tmp_path):
    path = adapter(tmp_path / "a.gguf")
    found = catalog(base, path, name="small")
    assert found.resolve("small").adapter is None
    assert [entry.parent for entry in found.list()] == [None]
