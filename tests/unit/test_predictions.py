"""Reading a text with one model beside another."""

import numpy as np
import pytest

from agent.evaluation.predictions import NoCommonVocabulary, predict

SIZE = 64


class Context:
    batch_tokens = 48

    def __init__(self, row_of):
        self.row_of, self.held = row_of, 0

    def keep(self, tokens):
        self.held = tokens

    def decode(self, nodes):
        assert [node.position for node in nodes] == list(range(self.held, self.held + len(nodes)))
        self.held += len(nodes)
        return [self.row_of(node.token) for node in nodes]


class Model:
    """Says of each token which one follows it."""

    vocabulary_size = SIZE

    def __init__(self, row_of, shift=0):
        self.context, self.shift = Context(row_of), shift

    def label_tokens(self, text):
        return [(ord(char) + self.shift) % SIZE for char in text]

    def text_tokens(self, text):
        return [1, *self.label_tokens(text)]

    def piece(self, token):
        return b"abcd"

    def scoring(self, cells):
        return self.context


def likes(following, strength=5.0):
    def row_of(token):
        row = np.zeros(SIZE, np.float32)
        row[following(token)] = strength
        return row

    return row_of


TEXT = "".join(chr(at % SIZE) for at in range(700))
NEXT = likes(lambda token: (token + 1) % SIZE)


def read(model, reference=None):
    return predict("text", TEXT, model, reference, lambda done, total: None)


def test_a_model_agrees_with_itself():
    figures = read(Model(NEXT), Model(NEXT))
    assert figures.divergence.value == pytest.approx(0, abs=1e-9)
    assert figures.agreement.value == 1
    assert not figures.fault
    expected = (np.exp(5.0) + SIZE - 1) / np.exp(5.0)
    assert figures.perplexity.value == pytest.approx(expected, rel=1e-5)
    assert figures.reference_perplexity == figures.perplexity


def test_the_divergence_is_that_of_the_distributions():
    figures = read(Model(likes(lambda token: (token + 1) % SIZE, 3.0)), Model(NEXT))
    own, other = (np.exp(strength) / (np.exp(strength) + SIZE - 1) for strength in (3.0, 5.0))
    rest_own, rest_other = (1 - own) / (SIZE - 1), (1 - other) / (SIZE - 1)
    expected = other * np.log(other / own) + (1 - other) * np.log(rest_other / rest_own)
    assert figures.divergence.value == pytest.approx(expected, rel=1e-4)
    assert figures.divergence.low <= figures.divergence.value <= figures.divergence.high
    assert figures.agreement.value == 1


@pytest.mark.parametrize(
    ("row_of", "told"),
    [
        (lambda token: np.full(SIZE, np.nan, np.float32), "NaN"),
        (likes(lambda token: 7), "the same token"),
        (likes(lambda token: (token + 2) % SIZE), "never agrees"),
        (likes(lambda token: (token + 2) % SIZE, 20.0), "no better than guessing"),
    ],
)
def test_silent_damage_is_seen(row_of, told):
    assert told in read(Model(row_of), Model(NEXT)).fault


def test_other_tokens_cannot_be_compared():
    with pytest.raises(NoCommonVocabulary):
        read(Model(NEXT), Model(NEXT, shift=3))


def test_a_short_text_says_too_little():
    with pytest.raises(ValueError, match="at least"):
        predict("note", "hello", Model(NEXT), None, lambda done, total: None)
