"""Any JSON document, cut into tokens anywhere: each value gets the score of its own tokens."""

import itertools
import json
import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.appraisal import FieldConfidence
from agent.confidence.fields import MOST_FIELDS, call_leaves, field_judge, leaves
from agent.structure import FormatKind, OutputFormat, ToolCall
from agent.types import Choice, Generation, InferenceRequest, Token

JSON = OutputFormat(kind=FormatKind.JSON_OBJECT)
DOCUMENTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def written(document, *, ascii_only):
    """Write the document, and beside it (pointer, begin, end of the value) of each leaf."""
    out, found = bytearray(), []

    def put(value, pointer):
        begin = len(out)
        if value and isinstance(value, dict | list):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            out.extend(b"{" if isinstance(value, dict) else b"[")
            for index, (key, inner) in enumerate(items):
                out.extend(b", " if index else b"")
                if isinstance(value, dict):
                    out.extend(json.dumps(key, ensure_ascii=ascii_only).encode() + b": ")
                put(inner, f"{pointer}/{str(key).replace('~', '~0').replace('/', '~1')}")
            out.extend(b"}" if isinstance(value, dict) else b"]")
            return
        out.extend(json.dumps(value, ensure_ascii=ascii_only).encode())
        found.append((pointer, begin, len(out), isinstance(value, int | float) and not isinstance(value, bool)))

    put(document, "")
    # A number ends with the byte behind it, where there is one.
    return bytes(out), [(p, b, e + (number and e < len(out))) for p, b, e, number in found]


def request(output=JSON):
    return InferenceRequest(id="x", model="m", messages=(), received_at_ms=0, response_format=output)


def judged(tokens, output=JSON, **fields):
    return field_judge("minimum")(request(output), Generation(tokens=tuple(tokens), **fields)).fields


@st.composite
def cut(draw, text):
    places = sorted(draw(st.sets(st.integers(0, len(text)), max_size=len(text))) | {0, len(text)})
    return [
        Token(1, text[a:b], draw(st.floats(-9, 0)), -10.0, 0.1, forced=draw(st.booleans()))
        for a, b in itertools.pairwise(places)
    ]


@settings(max_examples=150)
@given(st.data(), DOCUMENTS, st.booleans())
def test_each_value_has_the_score_of_its_own_tokens(data, document, ascii_only):
    text, spans = written(document, ascii_only=ascii_only)
    assert [tuple(leaf) for leaf in leaves(text)] == spans
    tokens = data.draw(cut(text))
    owner = [token for token in tokens for _ in token.text_bytes]
    expected = {}
    for pointer, begin, end in spans:
        chosen = [token.logprob for token in owner[begin:end] if not token.forced]
        expected[pointer] = math.exp(min(chosen)) if chosen else None
    found = judged(tokens)
    assert list(found) == list(expected)
    assert {pointer: field.score for pointer, field in found.items()} == pytest.approx(expected)


@given(DOCUMENTS, st.booleans(), st.data())
def test_where_a_document_is_cut_off_the_whole_values_before_it_are_found(document, ascii_only, data):
    text, spans = written(document, ascii_only=ascii_only)
    size = data.draw(st.integers(0, len(text)))
    # A number at the cut might have gone on, unless it is the document.
    whole = [span for span in spans if span[2] <= size]
    assert [leaf.pointer for leaf in leaves(text[:size])] == [pointer for pointer, _, _ in whole] or (
        not isinstance(document, dict | list)
    )


@given(st.binary(max_size=60) | st.text('{}[]",:\\u19tn e', max_size=60).map(str.encode))
def test_what_is_no_json_breaks_nothing_and_can_be_stored(text):
    for leaf in [*leaves(text), *call_leaves(b'<tool_call>\n{"name": "f", "arguments": ' + text)]:
        assert 0 <= leaf.begin < leaf.end
        leaf.pointer.encode()


@given(st.lists(DOCUMENTS.filter(lambda document: isinstance(document, dict)), min_size=1, max_size=3))
def test_the_arguments_of_calls(documents):
    text, expected = b"I look: ", []
    for index, document in enumerate(documents):
        arguments, spans = written(document, ascii_only=False)
        text += b'<tool_call>\n{"name": "f", "arguments": ' + arguments + b"}\n</tool_call>\n"
        expected += [f"/tool_calls/{index}/function/arguments{pointer}" for pointer, _, _ in spans]
    tokens = [Token(1, bytes([byte]), -0.1, -3.0, 0.1) for byte in text]
    assert list(judged(tokens, None, tool_calls=(ToolCall(id="1", name="f", arguments="{}"),))) == list(
        dict.fromkeys(expected)
    )


def test_null_counts_only_where_a_value_begins():
    def token(text, **more):
        return Token(1, text, -0.5, -3.0, 0.1, **more)

    found = judged(
        [
            token(b'{"a":', forced=True),
            token(b' "', forced_bytes=1, null_mass=0.3),
            token(b"x", null_mass=0.9),  # inside of the string
            token(b'"', null_mass=0.9),
            token(b', "b": "', forced=True),
            token(b'n"', null_mass=0.2),  # its string was forced to begin
            token(b', "c": ', forced=True),
            token(b"4", null_mass=0.25),
            token(b"}"),
        ]
    )
    assert {pointer: field.null_probability for pointer, field in found.items()} == {"/a": 0.3, "/b": None, "/c": 0.25}


def test_a_forced_value_has_no_score():
    tokens = [Token(1, b'{"a": "x"}', 0.0, 0.0, 0.0, forced=True)]
    assert judged(tokens) == {"/a": FieldConfidence(None, None)}


def test_every_choice_has_its_own_and_other_answers_have_none():
    tokens = (Token(1, b'{"a": 1}', -0.1, -3.0, 0.1),)
    generation = Generation(tokens=tokens, others=(Choice(text="", finish_reason="stop", tokens=tokens),))
    found = field_judge("mean")(request(), generation)
    assert list(found.fields) == list(found.others[0].fields) == ["/a"]
    assert field_judge("mean")(request(None), generation) == generation
    regex = OutputFormat(kind=FormatKind.REGEX, source=".*")
    assert field_judge("mean")(request(regex), generation) == generation


def test_the_number_of_fields_is_bounded():
    text = json.dumps(list(range(MOST_FIELDS + 5))).encode()
    assert len(judged([Token(1, text, -0.1, -3.0, 0.1)])) == MOST_FIELDS


def test_a_record_of_before_can_still_be_read():
    old = {
        "text": "x",
        "tokens": [{"id": 1, "text_bytes": b"x", "logprob": -1.0, "runner_up_logprob": -2.0, "entropy": 0.1}],
    }
    found = msgspec.msgpack.decode(msgspec.msgpack.encode(old), type=Generation)
    assert found.fields == {}
    assert found.tokens[0].null_mass is None
