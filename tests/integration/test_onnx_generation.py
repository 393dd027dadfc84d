"""What the ONNX runtime refuses to load, and why; and what it does beyond the conformance suite."""

import json

import numpy as np
import onnx
import pytest
from fakes import runtimes, tiny_onnx

from agent import device
from agent.engine import logit_rows
from agent.engine.onnx_generation_runtime import OnnxGenerationRuntime
from agent.engine.onnx_scoring import OnnxScoring
from agent.engine.runtime import Chunk, ModelUnloadable, Node
from agent.types import AdapterFile, KvType, Message


def load(folder, **changes):
    return OnnxGenerationRuntime(runtimes.onnx_order(folder, **changes))


@pytest.fixture
def folder(tmp_path):
    return tiny_onnx.write(tmp_path / "model")


def rewritten(folder, change):
    proto = onnx.load(folder / "model.onnx")
    change(proto)
    onnx.save(proto, folder / "model.onnx")


def configured(folder, **changes):
    path = folder / "genai_config.json"
    told = json.loads(path.read_text())
    told["model"] |= changes.pop("model", {})
    path.write_text(json.dumps(told | changes))


def without(name):
    return lambda folder: (folder / name).unlink()


def link(folder):
    (folder / "tokenizer.json").rename(folder.parent / "tokenizer.json")
    (folder / "tokenizer.json").symlink_to(folder.parent / "tokenizer.json")


def set_opset(folder):
    rewritten(folder, lambda proto: setattr(proto.opset_import[0], "version", 99))


def further_input(folder):
    value = onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, [1])
    rewritten(folder, lambda proto: proto.graph.input.append(value))


def not_numbers(folder):
    def change(proto):
        (head,) = [tensor for tensor in proto.graph.initializer if tensor.name == "head"]
        head.raw_data = np.full(tiny_onnx.WIDTH * tiny_onnx.VOCABULARY, np.nan, np.float32).tobytes()

    rewritten(folder, change)


def cut_off(folder):
    raw = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(raw[: len(raw) // 2])


def without_positions(folder):
    """A graph whose attention does not say where a token stands: one by one is not as in one piece."""

    def change(proto):
        for node in proto.graph.node:
            if node.op_type == "Sub":
                del node.input[:]
                node.input.extend(["tokens", "tokens"])

    rewritten(folder, change)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (without("tokenizer.json"), r"tokenizer\.json is missing"),
        (without("genai_config.json"), r"genai_config\.json is missing"),
        (without("model.onnx"), r"model\.onnx cannot be read"),
        (lambda folder: (folder / "genai_config.json").write_text("[]"), "not a JSON object"),
        (lambda folder: (folder / "genai_config.json").write_text("{"), "not JSON"),
        (link, r"tokenizer\.json is a symbolic link"),
        (set_opset, "newer operator set|opset"),
        (further_input, "pixels is not known"),
        (not_numbers, "damaged"),
        (cut_off, r"model\.onnx is no ONNX file, or a damaged one"),
        (without_positions, "does not keep keys and values"),
        (lambda folder: configured(folder, model={"vision": {}}), "several graphs"),
        (lambda folder: configured(folder, model={"vocab_size": 500}), "vocabulary of 500"),
        (lambda folder: configured(folder, model={"vocab_size": "many"}), "does not describe a decoder"),
        (lambda folder: (folder / "tokenizer_config.json").write_text('{"chat_template": "{% if %}"}'), "not valid"),
    ],
)
def test_what_cannot_be_loaded_says_why(folder, harm, told):
    harm(folder)
    with pytest.raises(ModelUnloadable, match=told):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"filename": "../model.onnx"}, "must lie in the same folder"),
        ({"num_hidden_layers": 3}, r"past_key_values\.2\.key is missing"),
        ({"num_key_value_heads": 4}, "not of one model"),
        ({"head_size": 0}, "does not describe a decoder"),
    ],
)
def test_a_graph_that_is_not_as_described_is_refused(folder, changes, told):
    decoder = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
    configured(folder, model={"decoder": decoder | changes})
    with pytest.raises(ModelUnloadable, match=told):
        load(folder)


def test_weights_outside_of_the_folder_are_never_read(tmp_path):
    folder = tiny_onnx.write(tmp_path / "model", data_file="weights")
    (folder / "weights").rename(tmp_path / "weights")
    rewritten_location = (folder / "model.onnx").read_bytes().replace(b"weights", b"../weig")
    (folder / "model.onnx").write_bytes(rewritten_location)
    (tmp_path / "weig").write_bytes((tmp_path / "weights").read_bytes())
    with pytest.raises(ModelUnloadable, match="only files beside it"):
        load(folder)


def test_an_adapter_is_refused_and_what_is_absent_is_named(folder):
    order = runtimes.onnx_order(folder)
    adapter = AdapterFile(path="x", sha256="0" * 64, scale=1.0)
    with pytest.raises(ModelUnloadable, match="LoRA"):
        load(
            folder,
            model=order.model.__class__(
                **{f: getattr(order.model, f) for f in order.model.__struct_fields__} | {"adapter": adapter}
            ),
        )
    runtime = load(folder, kv_type=KvType.Q8_0)
    assert any("q8_0" in absent for absent in runtime.traits.absent)
    assert runtime.traits.quantization == "float32"
    assert not runtime.traits.fills_gaps
    runtime.close()


def test_short_memory_shortens_the_context_or_refuses_with_figures(folder, monkeypatch):
    profile = device.profile()
    cell = 2 * tiny_onnx.LAYERS * tiny_onnx.KV_HEADS * tiny_onnx.HEAD * 4

    def left(free):
        monkeypatch.setattr(
            device,
            "profile",
            lambda: profile.__class__(
                **{f: getattr(profile, f) for f in profile.__struct_fields__}
                | {"memory_available": free, "memory_left": None}
            ),
        )

    weights = sum(file.stat().st_size for file in folder.glob("model*"))
    left(weights + 2 * 1.5 * cell * 512)
    runtime = load(folder, context_tokens=4000)
    assert runtime.context_tokens == runtime.cells == 512
    with pytest.raises(Exception, match="512, all that the free memory"):
        runtime.prompt_tokens([Message("user", "word " * 2000)])
    runtime.close()
    left(1000)
    with pytest.raises(ModelUnloadable, match="memory is short"):
        load(folder)


def test_the_memory_of_a_slot_is_given_back(folder):
    def resident():
        import psutil

        return psutil.Process().memory_info().rss

    runtime = load(folder, context_tokens=4000, parallel=1)
    runtime._values.data[:] = 1
    before = resident()
    runtime._filled[0] = 1
    runtime.clear(0)
    assert before - resident() > runtime._values.data.nbytes * 0.9
    runtime.close()


def test_the_last_position_of_the_model_can_be_scored(folder):
    runtime = load(folder, context_tokens=100_000, parallel=1)
    assert runtime.context_tokens <= tiny_onnx.CONTEXT
    at = 0
    while at < runtime.context_tokens:
        size = min(runtime.batch_tokens, runtime.context_tokens - at)
        runtime.decode([Chunk(0, at, [5] * size, wants_row=False)])
        at += size
    runtime.close()


def test_slots_far_apart_answer_as_they_do_alone(folder):
    runtime = load(folder, parallel=12, context_tokens=64)
    tokens = [5, 9, 13, 17]
    for slot in (0, 1, 4, 11):
        runtime.decode([Chunk(slot, 0, tokens, wants_row=False)])
    together = runtime.decode([Chunk(slot, 4, [21], wants_row=slot != 4) for slot in (11, 0, 4, 1)])
    runtime.clear(0)
    runtime.decode([Chunk(0, 0, tokens, wants_row=False)])
    (alone,) = runtime.decode([Chunk(0, 4, [21], wants_row=True)])
    assert len(together) == 3
    assert all(np.allclose(row, alone, atol=1e-4) for row in together)
    runtime.close()


@pytest.mark.parametrize("fixed", [True, False])
def test_labels_are_scored_the_same_whether_runs_have_one_size_or_not(folder, fixed):
    runtime = load(folder)
    scoring = OnnxScoring(runtime._decoder, cells=100, rows=4, fixed=fixed)
    assert scoring.step_tokens == (4 if fixed else 1)
    prompt = [Node(5 + at, at, None, wants_row=at == 19) for at in range(20)]
    tree = [
        Node(30, 20, [0, 1], wants_row=True),
        Node(31, 20, [2], wants_row=True),
        Node(32, 21, [0], wants_row=True),
        Node(33, 21, [1], wants_row=True),
        Node(34, 22, [1], wants_row=True),
    ]
    rows = [row.copy() for row in scoring.decode([*prompt, *tree])]
    paths = [[], [30], [31], [30, 32], [30, 33], [30, 33, 34]]
    for path, row in zip(paths, rows, strict=True):
        scoring.keep(0)
        again = [*prompt, *(Node(token, 20 + at, [7], wants_row=True) for at, token in enumerate(path))]
        assert np.abs(scoring.decode(again)[-1] - row).max() < 1e-4
    scoring.close()
    runtime.close()


@pytest.mark.parametrize(
    "broken",
    [
        [],
        [Node(1, 1, None, wants_row=True)],
        [Node(-1, 0, None, wants_row=True)],
        [Node(1, 0, [], wants_row=True)],
        [Node(1, 0, [0, 0], wants_row=True)],
        [Node(1, 1, [0], wants_row=True)],
        [Node(1, 0, [0], wants_row=True), Node(1, 0, None, wants_row=True)],
        [Node(1, 0, [127], wants_row=True)],
        [Node(1, at, None, wants_row=False) for at in range(65)],
    ],
)
def test_nodes_that_break_the_rules_change_nothing(folder, broken):
    runtime = load(folder)
    scoring = runtime.scoring(10)
    with pytest.raises(ValueError):
        scoring.decode(broken)
    assert len(scoring.decode([Node(1, 0, None, wants_row=True)])) == 1
    runtime.close()


def rows_of(folder):
    runtime = load(folder)
    drafted = [row.copy() for row in runtime.decode([Chunk(0, 0, [5, 9, 13, 17, 21], wants_row=True, drafted=2)])]
    runtime.decode([Chunk(slot, 0, [5, 9, 13, 17], wants_row=False) for slot in (1, 2)])
    beside = runtime.decode([Chunk(slot, 4, [21], wants_row=True) for slot in (1, 2)])
    assert all(np.allclose(row, drafted[-1], atol=1e-4) for row in beside)
    runtime.close()
    return np.array(drafted)


def test_a_graph_that_is_told_positions_is_told_them(tmp_path):
    rows = rows_of(tiny_onnx.write(tmp_path / "told", positions=True))
    assert np.abs(rows - rows_of(tiny_onnx.write(tmp_path / "plain"))).max() > 0.1


def test_logits_are_the_same_whether_all_are_computed_or_those_that_are_wanted(tmp_path):
    chosen, whole = tiny_onnx.write(tmp_path / "a"), tiny_onnx.write(tmp_path / "b", last="Sum")
    assert logit_rows.with_chosen_rows(chosen / "model.onnx", "logits")
    assert logit_rows.with_chosen_rows(whole / "model.onnx", "logits") is None
    assert np.allclose(rows_of(chosen), rows_of(whole), atol=1e-5)


def test_what_stands_between_the_last_product_and_the_logits_is_passed_over(folder):
    def soften(proto):
        proto.graph.node[-1].output[0] = "hard"
        proto.graph.node.append(onnx.helper.make_node("Tanh", ["hard"], ["soft"]))
        proto.graph.node.append(onnx.helper.make_node("Cast", ["soft"], ["logits"], to=onnx.TensorProto.FLOAT))

    rewritten(folder, soften)
    assert b"outrider_chosen_tokens" in logit_rows.with_chosen_rows(folder / "model.onnx", "logits")
    assert np.abs(rows_of(folder)).max() <= 1


def test_a_graph_that_gives_back_all_keys_and_values_is_run_row_by_row_and_says_so(tmp_path, folder):
    exported = tiny_onnx.write(tmp_path / "exported", positions=True, grows=True)
    runtime = load(exported)
    assert any("one after the other" in absent for absent in runtime.traits.absent)
    runtime.close()
    assert np.isfinite(rows_of(exported)).all()
    told = load(folder)
    assert not any("one after the other" in absent for absent in told.traits.absent)
    told.close()
    # The builder's own graph can be run both ways.
    plain = rows_of(folder)
    configured(folder, search={"past_present_share_buffer": False})
    assert np.allclose(rows_of(folder), plain, atol=1e-4)


def test_a_graph_that_is_said_to_share_its_buffer_and_does_not_is_refused(tmp_path):
    exported = tiny_onnx.write(tmp_path / "exported", positions=True, grows=True)
    configured(exported, search={"past_present_share_buffer": True})
    with pytest.raises(ModelUnloadable, match="cannot be run"):
        load(exported)


def test_what_is_known_of_a_prompt_changes_nothing(folder):
    """To the last bit: on quantized weights a difference in the last place does not stay there."""
    runtime = load(folder)
    tokens = [5 + 3 * at for at in range(20)]
    (whole,) = runtime.decode([Chunk(0, 0, tokens, wants_row=True)])
    saved = runtime.save(0, 0, 19)
    runtime.share(0, 1, 0, 19)
    assert runtime.restore(saved, 2, 19)
    for slot in (1, 2):
        (row,) = runtime.decode([Chunk(slot, 19, tokens[19:], wants_row=True)])
        assert np.array_equal(row, whole)
    runtime.close()
