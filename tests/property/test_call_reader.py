"""However an answer is cut into pieces, its text and its calls come out the same."""

import json

from hypothesis import given
from hypothesis import strategies as st

from agent.engine.call_markup import ARGUMENTS, CLOSE, NAME, OPEN, CallReader

free_text = st.text(alphabet="ab <>/_tolc\n{}", max_size=30).filter(lambda text: OPEN not in text)
arguments = st.dictionaries(
    st.text(max_size=4), st.one_of(st.text(max_size=12), st.just("}</tool_call>"), st.integers()), max_size=3
)
calls = st.lists(st.tuples(st.sampled_from(["a", "get_weather"]), arguments), max_size=3)


def written(text, given_calls):
    parts = [f"{OPEN}{NAME}{name}{ARGUMENTS}{json.dumps(given)}{CLOSE}" for name, given in given_calls]
    return text + "\n".join(parts)


def read(answer, sizes):
    reader, text, pieces = CallReader(), "", []
    at = 0
    while at < len(answer):
        size = sizes[at % len(sizes)]
        piece, parts = reader.feed(answer[at : at + size])
        text, pieces, at = text + piece, [*pieces, *parts], at + size
    rest, parts = reader.finish()
    return reader, text + rest, [*pieces, *parts]


@given(free_text, calls, st.lists(st.integers(1, 9), min_size=1, max_size=7))
def test_text_and_calls_come_out_as_they_were_written(text, given_calls, sizes):
    if (text + OPEN).index(OPEN) == len(text):  # else the text makes a mark of its own with the first
        reader, found, pieces = read(written(text, given_calls), sizes)
        assert found == text
        assert [(call.name, json.loads(call.arguments)) for call in reader.calls] == given_calls
        for index, call in enumerate(reader.calls):
            own = [piece for piece in pieces if piece.index == index]
            assert (own[0].id, own[0].name, own[0].arguments) == (call.id, call.name, "")
            assert "".join(piece.arguments for piece in own) == call.arguments
            assert not any(piece.id for piece in own[1:])


@given(calls.filter(bool), st.integers(0, 200), st.lists(st.integers(1, 9), min_size=1, max_size=7))
def test_an_answer_that_is_cut_off_gives_what_there_was(given_calls, length, sizes):
    reader, text, pieces = read(written("", given_calls)[:length], sizes)
    assert OPEN not in text
    for call, (name, given_arguments) in zip(reader.calls, given_calls, strict=False):
        assert call.name == name
        assert (json.dumps(given_arguments) + CLOSE).startswith(call.arguments)
    assert "".join(piece.arguments for piece in pieces) == "".join(call.arguments for call in reader.calls)
