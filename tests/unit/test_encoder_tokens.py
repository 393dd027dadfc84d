"""Texts and tokens on their way into an encoder: marks, limits, and what is refused."""

import pytest
from fakes import plain_encoders as plain

from agent.engine.encoder_tokens import CHARACTERS_PER_TOKEN, EncoderTokens
from agent.engine.refusals import ModelUnloadable, PromptRejected, PromptTooLong

CLS, SEP, GOOD, BAD = (plain.ID[word] for word in ("[CLS]", "[SEP]", "good", "bad"))


@pytest.fixture
def tokens(tmp_path):
    plain.write_tokenizer(tmp_path)
    return EncoderTokens(tmp_path / "tokenizer.json", 8)


def test_neither_the_cut_nor_the_filling_of_the_file_is_done(tokens):
    assert tokens.read("good").ids == [CLS, GOOD, SEP]
    assert len(tokens.read("good bad good bad good").ids) == 7


def test_a_pair_knows_which_text_is_the_second(tokens):
    found = tokens.read("bad bad", "good")
    assert found.ids == [CLS, GOOD, SEP, BAD, BAD, SEP]
    assert found.types == [0, 0, 0, 1, 1, 1]


def test_a_text_above_the_limit_is_refused_with_the_numbers(tokens):
    with pytest.raises(PromptTooLong, match="has 9 tokens, the model reads 8"):
        tokens.read("good " * 7)
    assert tokens.read("good " * 6).ids == [CLS, *[GOOD] * 6, SEP]


def test_or_its_beginning_is_read(tokens):
    assert tokens.read("good bad " * 50, truncate=True).ids == [CLS, *[GOOD, BAD] * 3, SEP]
    assert len(tokens.read("good " * 50, "bad " * 50, truncate=True).ids) == 8
    assert len(tokens.read("good " * 6).ids) == 8, "the next text is whole again"


def test_a_text_far_above_the_limit_is_not_tokenized_to_be_refused(tokens):
    most = 8 * CHARACTERS_PER_TOKEN
    with pytest.raises(PromptTooLong, match=f"more than {most} characters"):
        tokens.read(" " * (most + 1))
    assert tokens.read("good" + " " * 10_000_000, truncate=True).ids == [CLS, GOOD, SEP]


def test_tokens_get_the_marks_that_they_lack(tokens):
    for given in ((GOOD, BAD), (CLS, GOOD, BAD), (GOOD, BAD, SEP), (CLS, GOOD, BAD, SEP)):
        assert tokens.read(given).ids == [CLS, GOOD, BAD, SEP]


def test_tokens_above_the_limit(tokens):
    with pytest.raises(PromptTooLong, match="has 9 tokens with its marks"):
        tokens.read((GOOD,) * 7)
    assert tokens.read((GOOD,) * 7, truncate=True).ids == [CLS, *[GOOD] * 6, SEP]


@pytest.mark.parametrize("wrong", [-1, len(plain.WORDS), 2**40])
def test_a_token_that_the_model_does_not_have_is_named(tokens, wrong):
    with pytest.raises(PromptRejected, match=f"has the token {wrong}; those of this model are 0 to 9"):
        tokens.read((GOOD, wrong))


def test_tokens_are_not_read_together_with_a_query(tokens):
    with pytest.raises(PromptRejected, match="must be a text"):
        tokens.read((GOOD,), "bad")


def test_what_is_no_tokenizer_is_told(tmp_path):
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(ModelUnloadable, match=r"tokenizer\.json is no tokenizer"):
        EncoderTokens(tmp_path / "tokenizer.json", 8)
