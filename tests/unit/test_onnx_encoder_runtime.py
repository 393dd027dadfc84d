"""What comes out of an encoder, told by hand, and which graphs are refused."""

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from fakes import plain_encoders as plain
from onnx import TensorProto, numpy_helper
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from agent.encoder import EncoderSpec, EncoderTask, Pooling
from agent.engine.encoder_rows import spans
from agent.engine.encoder_tokens import Tokens
from agent.engine.frames import Span
from agent.engine.onnx_encoder_runtime import OnnxEncoderRuntime
from agent.engine.refusals import ModelUnloadable


def loaded(folder, **changes):
    return OnnxEncoderRuntime(plain.model_file(folder, **changes), threads=1)


def rows(runtime, *texts, query=None):
    return runtime.rows([runtime.tokens.read(text, query) for text in texts])


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (Pooling.MEAN, [1 / 4, 4 / 4, 4 / 4, 1 / 4]),  # [CLS] good bad [SEP]
        (Pooling.CLS, [1, 0, 0, 0]),
        (Pooling.LAST, [0, 0, 0, 1]),
    ],
)
def test_the_vectors_of_the_tokens_are_pooled_without_the_padding(tmp_path, pooling, expected):
    spec = EncoderSpec(pooling=pooling, normalized=False)
    runtime = loaded(plain.embedder(tmp_path), encoder=spec)
    found = rows(runtime, "good bad", "good bad good bad")
    assert found[0].tolist() == pytest.approx(expected)
    assert np.array_equal(found[0], rows(runtime, "good bad")[0]), "alone it is the same"


def test_a_vector_has_length_one(tmp_path):
    found = rows(loaded(plain.embedder(tmp_path)), "good bad", "good")
    assert np.linalg.norm(found, axis=1).tolist() == pytest.approx([1, 1])


def test_a_graph_that_pools_by_itself_is_read_as_it_is(tmp_path):
    plain.write(tmp_path, plain.VECTORS, summed=True)
    runtime = loaded(tmp_path, encoder=EncoderSpec(pooling=Pooling.NONE, normalized=False))
    assert rows(runtime, "good").tolist() == [[1, 4, 0, 1]]


def test_the_pooling_is_that_of_the_file_beside_the_graph(tmp_path):
    plain.embedder(tmp_path)
    (tmp_path / "pooling_config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    assert loaded(tmp_path).spec.pooling is Pooling.CLS
    (tmp_path / "pooling_config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ModelUnloadable, match="pooling_mode_max_tokens; there are mean"):
        loaded(tmp_path)


def test_labels_get_log_probabilities(tmp_path):
    runtime = loaded(plain.classifier(tmp_path))
    assert runtime.traits.encoder.labels == tuple(plain.LABELS)
    ((negative, positive),) = np.exp(rows(runtime, "good good"))
    assert positive == pytest.approx(1 / (1 + math.exp(-4)), rel=1e-5)
    assert negative + positive == pytest.approx(1)


def test_labels_that_do_not_exclude_each_other_are_each_by_itself(tmp_path):
    runtime = loaded(plain.classifier(tmp_path, problem_type="multi_label_classification"))
    ((negative, positive),) = np.exp(rows(runtime, "good"))
    assert positive == pytest.approx(1 / (1 + math.exp(-1)), rel=1e-5)
    assert negative == pytest.approx(1 / (1 + math.exp(1)), rel=1e-5)


def test_a_pair_gets_one_score_between_0_and_1(tmp_path):
    runtime = loaded(plain.reranker(tmp_path))
    found = rows(runtime, "good", "bad", query="Paris")
    assert runtime.width == 1
    assert found[:, 0].tolist() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))], rel=1e-5)


def test_tokens_of_one_label_are_one_piece(tmp_path):
    runtime = loaded(plain.tagger(tmp_path))
    text = "Anna Berta and Berta Paris Anna Anna"
    (found,) = runtime.spans([runtime.tokens.read(text, truncate=True)])
    pieces = [(text[span.start : span.end], span.label) for span in found]
    assert pieces == [("Anna Berta", "PER"), ("Berta", "PER"), ("Paris", "LOC"), ("Anna", "PER")]
    assert all(isinstance(span, Span) and 0.99 < span.score <= 1 for span in found)


def test_a_word_has_the_label_of_its_first_token(tmp_path):
    named = ["O", "B-PER", "I-PER"]
    logprobs = np.log(np.array([[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.9, 0.05, 0.05], [0.1, 0.1, 0.8]], np.float32))
    tokens = Tokens([0] * 4, [0] * 4, [(0, 0), (0, 3), (3, 7), (8, 12)], [None, 0, 0, 1])
    (found,) = spans(logprobs, tokens, named)
    assert (found.start, found.end, found.label) == (0, 12, "PER")  # the second token alone would be no name
    assert found.score == pytest.approx(0.8)
    assert spans(logprobs, tokens._replace(words=[None, 0, 1, 2]), named)[0].end == 3


def test_a_space_before_a_token_is_no_part_of_it(tmp_path):
    plain.tagger(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\S+"), "isolated")
    tokenizer.model = models.WordLevel(
        {word.replace("Paris", " Paris"): number for word, number in plain.ID.items()}, unk_token="[UNK]"
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    runtime = loaded(tmp_path)
    ((found,),) = runtime.spans([runtime.tokens.read("good Paris", truncate=True)])
    assert (found.start, found.end) == (5, 10)


def test_a_graph_of_one_size_takes_any_number_of_texts(tmp_path):
    runtime = loaded(plain.embedder(tmp_path, shape=(2, 6)))
    assert runtime.tokens.most_tokens == 6
    found = rows(runtime, "good", "bad", "good bad")
    assert np.array_equal(found[2], rows(runtime, "good bad")[0])
    assert found.shape == (3, 4)


def test_integers_of_32_bits_are_given_as_such(tmp_path):
    runtime = loaded(plain.embedder(tmp_path, kind=TensorProto.INT32))
    assert rows(runtime, "good").shape == (1, 4)


def test_the_position_limit_is_that_of_the_files(tmp_path):
    plain.write(tmp_path, plain.VECTORS, summed=False, config={"max_position_embeddings": 6})
    assert loaded(tmp_path).tokens.most_tokens == 6
    config = {"max_position_embeddings": 6, "model_type": "roberta", "pad_token_id": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert loaded(tmp_path).tokens.most_tokens == 4


def refusal(folder, **changes):
    with pytest.raises(ModelUnloadable) as caught:
        loaded(folder, **changes)
    return str(caught.value)


def test_inputs_that_are_not_those_of_the_manifest_are_named(tmp_path):
    told = refusal(plain.embedder(tmp_path), encoder=EncoderSpec(inputs=("input_ids", "attention_mask")))
    assert "input_ids, attention_mask, token_type_ids, the manifest says input_ids, attention_mask" in told


def test_inputs_that_are_none_of_an_encoder_are_named(tmp_path):
    told = refusal(plain.embedder(tmp_path, inputs=("input_ids", "pixel_values")))
    assert "the inputs input_ids, pixel_values; an encoder has input_ids" in told


def test_an_input_of_another_rank_is_named(tmp_path):
    told = refusal(plain.embedder(tmp_path, shape=("a", "b", "c")))
    assert "the input input_ids is tensor(int64) of rank 3; it must be integers of rank 2" in told


def test_an_output_that_the_task_does_not_read_is_named(tmp_path):
    told = refusal(plain.embedder(tmp_path), encoder=EncoderSpec(task=EncoderTask.RERANK))
    assert "to rerank, an output of rank 2 is read; the graph has hidden (tensor(float), rank 3)" in told
    assert "the manifest says vectors" in refusal(tmp_path, encoder=EncoderSpec(output="vectors"))


def test_labels_must_be_as_many_as_the_outputs(tmp_path):
    plain.classifier(tmp_path, id2label={"0": "a", "1": "b", "2": "c"})
    assert "gives 2 numbers where the task classify has 3" in refusal(tmp_path)
    plain.classifier(tmp_path, id2label={"0": "a", "2": "c"})
    assert "no label '1'" in refusal(tmp_path)


def test_a_missing_or_broken_tokenizer_is_told(tmp_path):
    plain.embedder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "tokenizer.json is no tokenizer" in refusal(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in refusal(tmp_path)


def test_a_symbolic_link_is_refused(tmp_path):
    plain.embedder(tmp_path / "real")
    (tmp_path / "linked").mkdir()
    plain.write_tokenizer(tmp_path / "linked")
    (tmp_path / "linked" / "model.onnx").symlink_to(tmp_path / "real" / "model.onnx")
    assert "model.onnx is a symbolic link" in refusal(tmp_path / "linked")


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/hostname", "gone.bin", "link.bin"])
def test_weights_outside_of_the_folder_are_refused(tmp_path, location):
    folder = plain.embedder(tmp_path / "model")
    (tmp_path / "outside.bin").write_bytes(bytes(4 * 4 * len(plain.WORDS)))
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    model = onnx.load(folder / "model.onnx")
    (weights,) = [one for one in model.graph.initializer if one.name == "table"]
    onnx.external_data_helper.set_external_data(weights, location=location)
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    Path(folder / "model.onnx").write_bytes(model.SerializeToString())
    assert "not inside its folder, or not there" in refusal(folder)


def test_an_operator_set_of_the_future_is_told(tmp_path):
    assert "newer operator set than onnxruntime" in refusal(plain.embedder(tmp_path, opset=99))


@pytest.mark.parametrize("data", [b"", b"not a graph at all" * 10])
def test_what_is_no_graph_is_told(tmp_path, data):
    plain.embedder(tmp_path)
    (tmp_path / "model.onnx").write_bytes(data)
    assert refusal(tmp_path) == "model.onnx is no ONNX graph, or not a whole one"


def test_a_graph_that_gives_no_numbers_is_refused(tmp_path):
    plain.embedder(tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(plain.table(plain.VECTORS) * np.nan, "table"))
    onnx.save(model, tmp_path / "model.onnx")
    assert "not finite" in refusal(tmp_path)
