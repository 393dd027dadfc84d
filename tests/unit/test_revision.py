"""What changed between a draft and a late answer."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.revision import MOST_WORDS, FieldChange, Kind, compare

TEXTS = st.text(alphabet='ab \n.{}[]"1:,', max_size=60)


@pytest.mark.parametrize(
    ("draft", "late", "marked"),
    [
        ("Lima is the capital.", "Quito is the capital.", "[-Lima-]{+Quito+} is the capital."),
        ("It is 4.", "It is 4, not 5.", "It is 4{+, not 5+}."),
        ("same", "same", "same"),
    ],
)
def test_words_are_marked(draft, late, marked):
    assert compare(draft, late).marked == marked


def test_without_a_draft_all_is_new():
    assert (compare(None, "a").kind, compare(None, "a").marked) == (Kind.NEW, "{+a+}")


def test_spaces_are_no_change():
    assert compare("a  b\n", "a b").kind is Kind.SAME


def test_json_is_compared_by_its_fields():
    revision = compare('{"a": 1, "b": [1, 2], "c~/": 0}', '{"b":[1,3],"a":1,"d":null}')
    assert revision.fields == (
        FieldChange("/b/1", 2, 3),
        FieldChange("/c~0~1", 0, msgspec.UNSET),
        FieldChange("/d", msgspec.UNSET, None),
    )
    assert compare('{"a": 1}', '{ "a":1 }').kind is Kind.SAME
    assert compare('{"a": 1}', '{"a": true}').kind is Kind.CHANGED


def test_long_texts_cost_little():
    words = " ".join(str(n) for n in range(MOST_WORDS * 3))
    revision = compare(words, words + "\nend")
    assert revision.kind is Kind.CHANGED
    assert revision.marked.endswith("{+end+}") or "{+" in revision.marked


@settings(max_examples=200, deadline=None)
@given(TEXTS, TEXTS)
def test_both_texts_are_whole_in_the_pieces(draft, late):
    revision = compare(draft, late)
    assert "".join(piece.text for piece in revision.pieces if piece.op != "removed") == late
    if revision.kind is Kind.CHANGED:
        assert "".join(piece.text for piece in revision.pieces if piece.op != "added") == draft
    assert 0 <= revision.similarity <= 1
