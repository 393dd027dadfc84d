"""What a rule forces goes through the model in one piece; the answer is the same as token by token."""

import json
import re
import zlib

import numpy as np
import pytest
from fakes.fake_runtime import END, VOCABULARY, FakeRuntime
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine import frames
from agent.engine.grammar import Constraint, Vocabulary
from agent.engine.scheduler import Scheduler
from agent.structure import FormatKind, OutputFormat, ToolChoice, ToolFunction, Tools
from agent.types import Message, Sampling

MERGED = [
    b'{"',
    b'": "',
    b'", "',
    b'":',
    b' "',
    b'"}',
    b"name",
    b"na",
    b"me",
    b"_call",
    b"tool",
    b"null",
    b" null",
    b", ",
]
PIECES = [MERGED[n - 128] if 128 <= n < 128 + len(MERGED) else bytes([n]) for n in range(256)]
LONGEST_FIRST = re.compile(b"|".join(re.escape(piece) for piece in sorted(PIECES, key=len, reverse=True)), re.DOTALL)


class MergedRuntime(FakeRuntime):
    """Some tokens are of several bytes, as a tokenizer has them; every token has its own probability."""

    def decode(self, chunks):
        super().decode(chunks)
        return [self.row(chunk.slot) for chunk in chunks if chunk.wants_row]

    def row(self, slot):
        seed = zlib.crc32(str(self.content[slot]).encode())
        return np.random.default_rng(seed).normal(0, 3, VOCABULARY).astype(np.float32)

    def vocabulary(self):
        return Vocabulary([*PIECES, b"\xff<end>"], [END], spell)

    def piece(self, token):
        return b"" if token == END else PIECES[token]


def spell(text):
    return [PIECES.index(piece) for piece in LONGEST_FIRST.findall(text)]


LEAVES = st.sampled_from(
    [
        {"type": "string", "maxLength": 4},
        {"type": ["string", "null"], "maxLength": 3},
        {"type": "boolean"},
        {"enum": ["name", "names", "none"]},
        {"const": "only this"},
        {"type": "integer", "minimum": 0, "maximum": 99},
    ]
)


@st.composite
def objects(draw):
    names = draw(
        st.lists(st.sampled_from(["name", "na", "a long key", 'q"uote', "né"]), min_size=1, max_size=3, unique=True)
    )
    properties = {name: draw(LEAVES) for name in names}
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


@st.composite
def asks(draw, request_id):
    schema = json.dumps(draw(objects()))
    tools, output = None, OutputFormat(kind=FormatKind.JSON_SCHEMA, source=schema)
    if draw(st.booleans()):
        function = ToolFunction(name="tool", parameters=schema)
        tools, output = Tools(functions=(function,), choice=ToolChoice.REQUIRED, parallel=draw(st.booleans())), None
    sampling = Sampling(
        temperature=draw(st.sampled_from([0.0, 1.0])),
        seed=draw(st.integers(0, 99)),
        max_tokens=draw(st.sampled_from([1, 9, 150])),
        frequency_penalty=draw(st.sampled_from([0.0, 1.0])),
    )
    messages = (Message("user", draw(st.text("xyz", min_size=1, max_size=40))),)
    return frames.Generate(id=request_id, messages=messages, sampling=sampling, response_format=output, tools=tools)


def answers(asked, runtime):
    """Return of each request its text, its tokens, and how it ended."""
    scheduler = Scheduler(runtime, waiting_line=8)
    for ask in asked:
        scheduler.submit(ask)
    texts, tokens, ends = {}, {}, {}
    while not scheduler.idle:
        step = scheduler.step()
        for part in (*step.pieces, *step.ended):
            texts[part.id] = texts.get(part.id, "") + part.text
            tokens[part.id] = tokens.get(part.id, ()) + part.tokens
        ends |= {ended.id: ended for ended in step.ended}
    assert not any(runtime.content)
    return {ask.id: (texts[ask.id], tokens[ask.id], ends[ask.id]) for ask in asked}


def measured(ask):
    """The same with log-probabilities: every token has a row of its own then."""
    sampling = Sampling(
        **{name: getattr(ask.sampling, name) for name in Sampling.__struct_fields__} | {"logprobs": True}
    )
    return frames.Generate(
        id=ask.id, messages=ask.messages, sampling=sampling, response_format=ask.response_format, tools=ask.tools
    )


def runtime(**given):
    return MergedRuntime(**({"slots": 3, "context_tokens": 300, "batch_tokens": 32} | given))


@settings(max_examples=25, deadline=None)
@given(st.tuples(asks(1), asks(2), asks(3), asks(4)), st.integers(4, 64), st.integers(1, 3))
def test_in_one_piece_or_token_by_token_alone_or_beside_others(asked, batch, slots):
    together = answers(asked, runtime(batch_tokens=batch, slots=slots))
    for ask in asked:
        text, tokens, ended = answers([measured(ask)], runtime(slots=1))[ask.id]
        found, pieces, end = together[ask.id]
        assert found == text
        assert [token.id for token in pieces] == [token.id for token in tokens]
        assert [token.forced for token in pieces] == [token.forced for token in tokens]
        assert b"".join(token.text_bytes for token in pieces).decode("utf-8", "replace") == text
        assert (end.finish_reason, end.incomplete, end.output_tokens) == (
            ended.finish_reason,
            ended.incomplete,
            ended.output_tokens,
        )
        for ours, theirs in zip(pieces, tokens, strict=True):
            if not ours.forced:
                assert (ours.logprob, ours.allowed_mass) == (theirs.logprob, theirs.allowed_mass)
        assert all(token.logprob < 0 for token in tokens)


@settings(max_examples=20, deadline=None)
@given(asks(1))
def test_where_a_byte_is_a_token_the_text_is_that_of_drawing_each(ask):
    """Only then: a longer token may span what is forced and what is chosen after it."""

    class Bytes(FakeRuntime):
        def decode(self, chunks):
            super().decode(chunks)
            return [MergedRuntime.row(self, chunk.slot) for chunk in chunks if chunk.wants_row]

    if ask.sampling.temperature:
        return  # a draw consumes a random number, a forced token does not
    found = answers([ask], Bytes(context_tokens=300))[1]
    forced_tokens, Constraint.forced_tokens = Constraint.forced_tokens, lambda self: []
    try:
        drawn = answers([ask], Bytes(context_tokens=300))[1]
    finally:
        Constraint.forced_tokens = forced_tokens
    assert found[0] == drawn[0]


def test_a_run_costs_one_decode():
    schema = {"type": "object", "properties": {"a long key": {"type": "boolean"}}, "required": ["a long key"]}
    ask = frames.Generate(
        id=1,
        messages=(Message("user", "x"),),
        sampling=Sampling(),
        response_format=OutputFormat(
            kind=FormatKind.JSON_SCHEMA, source=json.dumps({**schema, "additionalProperties": False})
        ),
    )
    serving = runtime()
    text, tokens, ended = answers([ask], serving)[1]
    assert text in {'{"a long key": true}', '{"a long key": false}'}
    assert ended.finish_reason == "stop"
    # The beginning goes with the prompt, the end is not decoded at all: what is left are the choices.
    assert serving.decodes == sum(not token.forced for token in tokens)


@pytest.mark.parametrize(
    "tokenize", [lambda text: spell(b" " + text), lambda text: spell(text.upper()), lambda text: []]
)
def test_a_tokenizer_that_does_not_spell_a_part_of_a_text_as_it_is(tokenize):
    class Odd(MergedRuntime):
        def vocabulary(self):
            return Vocabulary([*PIECES, b"\xff<end>"], [END], tokenize)

    schema = {
        "type": "object",
        "properties": {"name": {"const": "x"}},
        "required": ["name"],
        "additionalProperties": False,
    }
    ask = frames.Generate(
        id=1,
        messages=(Message("user", "x"),),
        sampling=Sampling(),
        response_format=OutputFormat(kind=FormatKind.JSON_SCHEMA, source=json.dumps(schema)),
    )
    text, tokens, _ = answers([ask], Odd(context_tokens=300))[1]
    assert text == '{"name": "x"}'
    assert [token.text_bytes for token in tokens] == [b'{"', b"name", b'": "', b"x", b'"}']
