"""Frames survive any way in which a pipe may cut them, and nothing else is taken for one."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engine import frames
from agent.types import Failure, FailureKind, Message, ModelFile, Sampling, Token, TopToken

integers = st.integers(0, 2**31)
numbers = st.floats(allow_nan=False, allow_infinity=True)
texts = st.text(max_size=40)
messages = st.builds(Message, texts, texts, st.none() | texts)
samplings = st.builds(
    Sampling,
    temperature=st.floats(0, 2),
    top_p=st.floats(0.01, 1),
    seed=st.none() | integers,
    max_tokens=st.none() | integers,
    stop=st.lists(texts, max_size=4).map(tuple),
    top_logprobs=st.integers(0, 20),
)
tops = st.lists(st.builds(TopToken, integers, st.binary(max_size=5), numbers), max_size=3).map(tuple)
tokens = st.lists(st.builds(Token, integers, st.binary(max_size=9), numbers, numbers, numbers, tops), max_size=4).map(
    tuple
)
failures = st.none() | st.builds(Failure, st.sampled_from(FailureKind), texts)
ended = st.builds(frames.Ended, integers, texts, tokens, st.none() | texts, integers, integers, integers, failures)
models = st.builds(
    ModelFile, name=texts, path=texts, sha256=texts, context_tokens=integers, chat_template=st.none() | texts
)
commands = st.one_of(
    st.builds(
        frames.Load,
        model=models,
        context_tokens=integers,
        parallel=integers,
        waiting_line=integers,
        threads=integers,
        confine=st.booleans(),
    ),
    st.builds(
        frames.Generate,
        id=integers,
        messages=st.lists(messages, max_size=3).map(tuple),
        sampling=samplings,
        deadline_ms=st.none() | st.floats(0, 1e9),
    ),
    st.builds(frames.Cancel, integers),
)
events = st.one_of(
    st.builds(frames.Hello, integers, integers),
    st.builds(
        frames.Ready,
        runtime=texts,
        context_tokens=integers,
        confinement=st.lists(texts).map(tuple),
        load_ms=st.floats(0, 1e9),
    ),
    st.builds(frames.LoadFailed, texts),
    st.builds(
        frames.Step,
        st.lists(st.builds(frames.Piece, integers, texts, tokens), max_size=3).map(tuple),
        st.lists(ended, max_size=3).map(tuple),
    ),
)


def fed(reader, data, cuts):
    out = []
    begin = 0
    for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        out += reader.feed(data[begin:cut])
        begin = cut
    assert reader.pending_bytes == 0
    return out


@given(st.lists(commands, max_size=4), st.lists(integers, max_size=8))
def test_commands_come_back_as_they_went(sent, cuts):
    assert fed(frames.command_reader(), b"".join(map(frames.encode, sent)), cuts) == sent


@given(st.lists(events, max_size=4), st.lists(integers, max_size=8))
def test_events_come_back_as_they_went(sent, cuts):
    assert fed(frames.event_reader(), b"".join(map(frames.encode, sent)), cuts) == sent


@given(st.binary(max_size=200))
def test_other_bytes_are_an_error_or_wait_for_more_and_never_anything_else(data):
    reader = frames.event_reader()
    try:
        list(reader.feed(data))
    except frames.FrameError:
        return
    assert reader.pending_bytes <= len(data)


def test_a_frame_that_announces_too_much_is_refused_before_it_is_read():
    with pytest.raises(frames.FrameError, match="limit"):
        list(frames.event_reader().feed((frames.MAX_FRAME_BYTES + 1).to_bytes(4, "big")))


def test_a_frame_above_the_limit_is_not_sent(monkeypatch):
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 100)
    with pytest.raises(frames.FrameError, match="above the limit"):
        frames.encode(frames.LoadFailed("x" * 200))


def test_an_infinite_log_probability_survives():
    token = Token(1, b"a", 0.0, -math.inf, 0.0)
    step = frames.Step((frames.Piece(1, "a", (token,)),))
    assert list(frames.event_reader().feed(frames.encode(step))) == [step]
