"""Models from Python without a daemon."""

import numpy as np
import pytest
from fakes import plain_encoders as plain
from fakes.runtimes import tiny_folder
from fakes.smollm2 import model_file

from agent import batch
from agent.batch import open_encoder, open_writer
from agent.errors import EngineFailed, InvalidRequest, ModelNotFound


def test_vectors_of_any_number_of_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "AT_ONCE", 10)
    with open_encoder(plain.embedder(tmp_path), threads=1) as encoder:
        vectors = encoder.embed(f"good {'bad ' * (n % 3)}" for n in range(35))
        assert vectors.shape == (35, 4)
        assert np.array_equal(vectors[1], vectors[34])
        assert encoder.embed(["good"], dimensions=2).shape == (1, 2)
        assert encoder.embed([]).shape == (0, 4)
        with pytest.raises(InvalidRequest, match=r"input 2 has 8194 tokens.*counted from text 20") as caught:
            encoder.embed(["good"] * 22 + ["good " * 8192])
        assert caught.value.param == "input[2]"
        assert encoder.embed(["good"]).shape == (1, 4), "it goes on"
        with pytest.raises(InvalidRequest, match="made to embed, not to classify"):
            encoder.classify(["good"])


def test_labels_ranks_and_pieces(tmp_path):
    with open_encoder(plain.classifier(tmp_path / "labels"), threads=1) as encoder:
        positive, negative = encoder.classify(["good", "bad"])
        assert positive["positive"] == pytest.approx(negative["negative"])
        assert positive["positive"] > 0.8
    with open_encoder(plain.reranker(tmp_path / "ranks"), threads=1) as encoder:
        assert encoder.rank("Paris", ["bad", "good"]) == sorted(encoder.rank("Paris", ["bad", "good"]))
    with open_encoder(plain.tagger(tmp_path / "tags"), threads=1) as encoder:
        assert [[span.label for span in spans] for spans in encoder.tag(["Anna and Paris", "good"])] == [
            ["PER", "LOC"],
            [],
        ]


def test_the_limit_is_that_of_the_files(tmp_path):
    folder = plain.embedder(tmp_path)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 6}')
    with open_encoder(folder, threads=1) as encoder:
        assert encoder.embed(["good " * 4]).shape == (1, 4)
        with pytest.raises(InvalidRequest, match="has 7 tokens, the model reads 6"):
            encoder.embed(["good " * 5])
        assert encoder.embed(["good " * 5], truncate=True).shape == (1, 4)


def test_what_cannot_be_opened_is_told(tmp_path):
    with pytest.raises(ModelNotFound, match="nothing at"), open_encoder(tmp_path / "gone"):
        pass
    with pytest.raises(ModelNotFound, match="minilm-l6-v2-int8"), open_encoder("minilm-l6-v2-int9"):
        pass
    with pytest.raises(EngineFailed, match=r"no \.onnx file"), open_encoder(tmp_path):
        pass


@pytest.mark.model
def test_the_embedded_encoder_knows_what_is_alike():
    with open_encoder("minilm-l6-v2-int8") as encoder:
        cat, kitten, shares = encoder.embed(
            ["A cat sits on the mat.", "A kitten is on a rug.", "Shares fell on Monday."]
        )
        assert encoder.runtime.tokens.most_tokens == 256
    assert cat @ kitten > 0.5 > 0.2 > cat @ shares


def test_an_onnx_model_that_writes_is_a_folder():
    with open_writer(tiny_folder(), context_tokens=256, parallel=2, threads=1) as writer:
        answers = writer.answer(["What is the capital of France?", "Say hello."] * 2, max_tokens=6)
        assert answers[:2] == answers[2:]
        assert all(answers)


@pytest.mark.model
def test_answers_of_a_model_that_writes_come_in_their_order():
    with open_writer(model_file().path, context_tokens=256, parallel=2, threads=1) as writer:
        alone = writer.answer(["What is 2+2?"], max_tokens=4)
        answers = writer.answer(["What is 2+2?", "Say hello", "What is 2+2?"], max_tokens=4)
        assert answers[0] == answers[2] == alone[0]
        assert all(answers)
        with pytest.raises(InvalidRequest, match="256"):
            writer.answer(["word " * 500])
