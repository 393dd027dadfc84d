"""However an answer is cut into tokens: the text is the same, and never shows a stop string."""

from hypothesis import example, given
from hypothesis import strategies as st

from agent.engine.text_stream import TextStream
from agent.types import Token


def run(pieces, stop=()):
    stream = TextStream(stop)
    texts, tokens = [], []
    for index, piece in enumerate(pieces):
        text, final = stream.push(Token(index, piece, -0.1, -1.0, 0.1))
        texts.append(text)
        tokens += final
        if stream.stopped:
            break
    text, final = stream.flush()
    return [*texts, text], [*tokens, *final], stream.stopped


def cut(data, cuts):
    ends = sorted({cut % (len(data) + 1) for cut in cuts} | {len(data)})
    return [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


alphabet = st.text(st.sampled_from("abAB \n€😀é"), max_size=30)


@given(alphabet, st.lists(st.integers(0, 200), max_size=20))
@example("a😀b", [2, 3, 4])
def test_characters_come_out_whole_and_all_tokens_come_out_once(text, cuts):
    pieces = cut(text.encode(), cuts)
    texts, tokens, stopped = run(pieces)
    assert "".join(texts) == text
    assert [token.id for token in tokens] == list(range(len(pieces)))
    assert not stopped
    assert not any("\ufffd" in part for part in texts)


@given(st.binary(max_size=30), st.lists(st.integers(0, 200), max_size=20))
@example(b"\xed\xa0\x80", [1, 2])
@example(b"\xe2(\xf0\x80", [1, 2, 3])
def test_broken_characters_are_replaced_as_in_the_whole(data, cuts):
    texts, _, _ = run(cut(data, cuts))
    assert "".join(texts) == data.decode("utf-8", "replace")


@given(
    alphabet,
    st.lists(st.text(st.sampled_from("abAB \n€"), min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 200), max_size=20),
)
@example("Hello END more", ["END"], [7, 8])
def test_text_ends_before_the_stop_string_wherever_tokens_cut_it(text, stop, cuts):
    texts, _, stopped = run(cut(text.encode(), cuts), stop)
    out = "".join(texts)
    assert text.startswith(out)
    assert not any(one in out for one in stop)
    assert stopped == any(one in text for one in stop)
    if not stopped:
        assert out == text


def test_the_tokens_of_a_stop_string_are_no_part_of_the_answer():
    texts, tokens, stopped = run([b"ab", b"cEN", b"D", b"x"], ["END"])
    assert ("".join(texts), [token.id for token in tokens], stopped) == ("abc", [0, 1], True)


def test_what_cannot_become_a_stop_string_is_not_held_back():
    stream = TextStream(["END"])
    assert stream.push(Token(0, b"abE", 0, 0, 0))[0] == "ab"
    assert stream.push(Token(1, b"x", 0, 0, 0)) == ("Ex", (Token(0, b"abE", 0, 0, 0), Token(1, b"x", 0, 0, 0)))
