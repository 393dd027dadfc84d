"""What every runtime must do, call by call. A new entry of RUNTIMES joins by one line in ``fakes.runtimes``."""

import math

import numpy as np
import pytest
from fakes.runtimes import CONTEXT, LOADERS

from agent.engine.runtime import RUNTIMES, Chunk, PromptTooLong
from agent.types import Message


def test_every_runtime_is_here():
    assert set(RUNTIMES) <= set(LOADERS)


def prompt(runtime, text):
    return runtime.prompt_tokens([Message("user", text)])


def prefill(runtime, slot, tokens):
    (row,) = runtime.decode([Chunk(slot, 0, tokens, wants_row=True)])
    return row.copy()


def greedy(runtime, slot, row, start, count):
    out = []
    for position in range(start, start + count):
        out.append(int(row.argmax()))
        (row,) = runtime.decode([Chunk(slot, position, out[-1:], wants_row=True)])
    return out


def test_it_names_itself_and_its_limits(runtime):
    assert runtime.name
    assert runtime.slots == 3
    assert runtime.context_tokens == CONTEXT
    assert runtime.batch_tokens >= runtime.slots
    assert runtime.cells >= runtime.context_tokens


def test_its_vocabulary_is_that_of_its_rows_and_pieces(runtime):
    vocabulary = runtime.vocabulary()
    assert len(vocabulary.tokens) == runtime.vocabulary_size
    assert vocabulary.ends
    assert all(runtime.ends(token) for token in vocabulary.ends)
    tokens = vocabulary.tokenize(b'{"city": "Paris"}')
    assert b"".join(map(runtime.piece, tokens)) == b'{"city": "Paris"}'
    assert [vocabulary.tokens[token] for token in tokens] == [runtime.piece(token) for token in tokens]


def test_a_prompt_is_tokens_of_the_vocabulary(runtime):
    tokens = prompt(runtime, "What is the capital of France?")
    assert tokens
    assert all(0 <= token < runtime.vocabulary_size for token in tokens)
    assert tokens == prompt(runtime, "What is the capital of France?")


@pytest.mark.parametrize("times", [CONTEXT, 100_000])
def test_a_prompt_above_the_context_is_too_long_and_says_the_numbers(runtime, times):
    with pytest.raises(PromptTooLong, match=str(CONTEXT)):
        prompt(runtime, "word " * times)


def test_the_pieces_of_a_text_are_its_bytes(runtime):
    text = "naïve €5 😀 text"
    assert text.encode() in b"".join(runtime.piece(token) for token in prompt(runtime, text))


def test_a_row_is_finite_and_as_long_as_the_vocabulary(runtime):
    row = prefill(runtime, 0, prompt(runtime, "hello"))
    assert row.shape == (runtime.vocabulary_size,)
    assert row.dtype == np.float32
    assert math.isfinite(float(row.max()))


def test_the_same_tokens_give_the_same_row_again(runtime):
    tokens = prompt(runtime, "hello")
    first = prefill(runtime, 0, tokens)
    runtime.clear(0)
    assert np.array_equal(first, prefill(runtime, 0, tokens))


def test_a_prompt_in_pieces_ends_in_the_same_token(runtime):
    tokens = prompt(runtime, "What is the capital of France?")
    whole = prefill(runtime, 0, tokens)
    half = len(tokens) // 2
    assert runtime.decode([Chunk(1, 0, tokens[:half], wants_row=False)]) == []
    (row,) = runtime.decode([Chunk(1, half, tokens[half:], wants_row=True)])
    assert int(row.argmax()) == int(whole.argmax())


def test_slots_do_not_see_each_other(runtime):
    questions = ["What is the capital of France?", "Count: one, two, three,", "Say hello"]
    prompts = [prompt(runtime, question) for question in questions]
    alone = []
    for tokens in prompts:
        alone.append(greedy(runtime, 0, prefill(runtime, 0, tokens), len(tokens), 3))
        runtime.clear(0)
    rows = runtime.decode([Chunk(slot, 0, tokens, wants_row=True) for slot, tokens in enumerate(prompts)])
    together = [[int(row.argmax())] for row in rows]
    for step in range(2):
        rows = runtime.decode(
            [Chunk(slot, len(prompts[slot]) + step, together[slot][-1:], wants_row=True) for slot in range(3)]
        )
        for slot, row in enumerate(rows):
            together[slot].append(int(row.argmax()))
    assert together == alone


def test_rows_come_for_those_who_want_one_in_the_order_of_the_chunks(runtime):
    first, second = prompt(runtime, "hello"), prompt(runtime, "What is the capital of France?")
    wanted = prefill(runtime, 1, second)
    runtime.clear(1)
    rows = runtime.decode([Chunk(0, 0, first, wants_row=False), Chunk(1, 0, second, wants_row=True)])
    assert len(rows) == 1
    assert int(rows[0].argmax()) == int(wanted.argmax())


def test_a_shared_beginning_answers_as_a_computed_one(runtime):
    """The same tokens come out; the figures may differ in the last places."""
    tokens = prompt(runtime, "What is the capital of France?")
    cut = len(tokens) - 4
    cold = prefill(runtime, 0, tokens)
    answer = greedy(runtime, 0, cold, len(tokens), 6)
    saved = runtime.save(0, 0, cut)
    runtime.share(0, 1, 0, cut)
    runtime.clear(0)
    assert runtime.restore(saved, 2, cut)
    for slot in (1, 2):
        (row,) = runtime.decode([Chunk(slot, cut, tokens[cut:], wants_row=True)])
        assert np.abs(row - cold).max() < 1.5
        assert greedy(runtime, slot, row, len(tokens), 6) == answer


def test_what_is_saved_in_pieces_is_the_whole(runtime):
    tokens = prompt(runtime, "What is the capital of France?")
    last = len(tokens) - 1
    runtime.decode([Chunk(0, 0, tokens[:last], wants_row=False)])
    first, other = runtime.save(0, 0, 3), runtime.save(0, 3, last)
    middle, end = runtime.divide(other, 6)
    assert [(part.start, part.end) for part in (first, middle, end)] == [(0, 3), (3, 6), (6, last)]
    for part in (first, middle, end):
        assert runtime.restore(part, 1, part.end)
    assert runtime.restore(first, 2, 2), "a part of what was saved"
    runtime.share(0, 2, 2, last)
    rows = [runtime.decode([Chunk(slot, last, tokens[last:], wants_row=True)])[0].copy() for slot in range(3)]
    assert np.array_equal(rows[0], rows[1])
    # Other cells in another order, summed in half precision: near, not equal.
    assert np.abs(rows[0] - rows[2]).max() < 1.5
    assert rows[0].argmax() == rows[2].argmax()


def test_what_is_packed_comes_back_as_it_was(runtime):
    tokens = prompt(runtime, "What is the capital of France?")
    last = len(tokens) - 1
    runtime.decode([Chunk(0, 0, tokens[:last], wants_row=False)])
    kept = [runtime.save(0, 0, 5), runtime.save(0, 5, last)]
    packed = [bytes(runtime.pack(saved)) for saved in kept]
    runtime.clear(0)
    rows = []
    for parts in (kept, [runtime.unpack(s.start, s.end, data) for s, data in zip(kept, packed, strict=True)]):
        for part in parts:
            assert runtime.restore(part, 1, part.end)
        (row,) = runtime.decode([Chunk(1, last, tokens[last:], wants_row=True)])
        rows.append(row.copy())
        runtime.clear(1)
    assert np.array_equal(*rows), "token-exact"
    assert runtime.state_format


def test_bytes_that_were_not_packed_are_refused(runtime):
    tokens = prompt(runtime, "What is the capital of France?")
    runtime.decode([Chunk(0, 0, tokens, wants_row=False)])
    data = bytes(runtime.pack(runtime.save(0, 0, 6)))
    runtime.clear(0)
    for start, end, broken in [(0, 6, data[:-1]), (0, 5, data), (1, 7, data + data), (0, 6, b""), (0, 0, b"")]:
        with pytest.raises(ValueError):
            runtime.unpack(start, end, broken)
    assert runtime.restore(runtime.unpack(0, 6, data), 0, 6)


def test_who_shares_a_beginning_does_not_see_what_others_add(runtime):
    tokens = prompt(runtime, "What is the capital of France?")
    last = len(tokens) - 1
    runtime.decode([Chunk(0, 0, tokens[:last], wants_row=False)])
    runtime.share(0, 1, 0, last)
    runtime.decode([Chunk(0, last, prompt(runtime, "hello"), wants_row=False)])
    (row,) = runtime.decode([Chunk(1, last, tokens[last:], wants_row=True)])
    wanted = int(row.argmax())
    runtime.clear(0)
    runtime.clear(1)
    assert int(prefill(runtime, 0, tokens).argmax()) == wanted


def test_saving_and_restoring_again_and_again_loses_no_room(runtime):
    tokens = prompt(runtime, "What is the capital of France?")
    whole = prefill(runtime, 0, tokens)
    saved = runtime.save(0, 0, len(tokens) - 1)
    runtime.clear(0)
    for _ in range(3 * CONTEXT // len(tokens)):
        assert runtime.restore(saved, 1, saved.end)
        runtime.save(1, 0, saved.end)
        assert runtime.divide(saved, 2)
        runtime.clear(1)
    assert int(prefill(runtime, 2, tokens).argmax()) == int(whole.argmax())


@pytest.mark.parametrize(
    "broken",
    [
        lambda runtime, held: runtime.share(0, 0, 0, held),
        lambda runtime, held: runtime.share(0, 1, 0, held + 1),
        lambda runtime, held: runtime.share(0, 1, 1, held),
        lambda runtime, held: runtime.share(0, 1, 0, 0),
        lambda runtime, held: runtime.share(0, runtime.slots, 0, held),
        lambda runtime, held: runtime.share(-1, 1, 0, held),
        lambda runtime, held: runtime.save(0, 0, held + 1),
        lambda runtime, held: runtime.save(runtime.slots, 0, held),
        lambda runtime, held: runtime.restore(runtime.save(0, 1, held), 1, held),
        lambda runtime, held: runtime.restore(runtime.save(0, 0, held), 1, held + 1),
        lambda runtime, held: runtime.restore(runtime.save(0, 0, held), 0, held),
        lambda runtime, held: runtime.divide(runtime.save(0, 0, held), held),
    ],
)
def test_what_is_not_held_cannot_be_shared(runtime, broken):
    tokens = prompt(runtime, "hello")
    prefill(runtime, 0, tokens)
    with pytest.raises(ValueError):
        broken(runtime, len(tokens))
    assert prefill(runtime, 1, tokens).shape == (runtime.vocabulary_size,)


def test_a_slot_can_be_filled_to_the_last_token_and_no_further(runtime):
    token = prompt(runtime, "hello")[0]
    at = 0
    while at < CONTEXT:
        size = min(runtime.batch_tokens, CONTEXT - at)
        runtime.decode([Chunk(0, at, [token] * size, wants_row=False)])
        at += size
    with pytest.raises(ValueError):
        runtime.decode([Chunk(0, at, [token], wants_row=True)])


@pytest.mark.parametrize(
    "broken",
    [
        lambda runtime, tokens: [],
        lambda runtime, tokens: [Chunk(0, 0, [], True)],
        lambda runtime, tokens: [Chunk(0, 1, tokens, True)],
        lambda runtime, tokens: [Chunk(3, 0, tokens, True)],
        lambda runtime, tokens: [Chunk(-1, 0, tokens, True)],
        lambda runtime, tokens: [Chunk(0, 0, [runtime.vocabulary_size], True)],
        lambda runtime, tokens: [Chunk(0, 0, [-1], True)],
        lambda runtime, tokens: [Chunk(0, 0, tokens, True), Chunk(0, len(tokens), tokens, True)],
        lambda runtime, tokens: [Chunk(0, 0, tokens[:1] * (runtime.batch_tokens + 1), True)],
    ],
)
def test_what_would_abort_native_code_is_refused_and_changes_nothing(runtime, broken):
    tokens = prompt(runtime, "hello")
    with pytest.raises(ValueError):
        runtime.decode(broken(runtime, tokens))
    assert prefill(runtime, 0, tokens).shape == (runtime.vocabulary_size,)


def test_drafted_tokens_have_a_row_each_and_can_be_taken_back(runtime):
    tokens = prompt(runtime, "What is the capital of France?")
    cold = prefill(runtime, 0, tokens)
    answer = greedy(runtime, 0, cold, len(tokens), 4)
    runtime.clear(0)
    first, rest = tokens[:-1], tokens[-1:]
    runtime.decode([Chunk(0, 0, first, wants_row=False), Chunk(1, 0, first, wants_row=False)])
    rows = runtime.decode(
        [
            Chunk(0, len(first), [*rest, *answer[:2], rest[0]], wants_row=True, drafted=3),
            Chunk(1, len(first), rest, wants_row=True),
        ]
    )
    assert [int(row.argmax()) for row in rows[:3]] == answer[:3]
    assert len(rows) == 5
    assert int(rows[4].argmax()) == answer[0]
    runtime.cut(0, len(tokens) + 2)
    (row,) = runtime.decode([Chunk(0, len(tokens) + 2, answer[2:3], wants_row=True)])
    assert int(row.argmax()) == answer[3]


def test_one_token_each_gives_the_rows_that_decode_gives(runtime):
    texts = {2: prompt(runtime, "What is the capital of France?"), 0: prompt(runtime, "hello")}
    found = []
    for short in (False, True):
        rows = [prefill(runtime, slot, tokens) for slot, tokens in texts.items()]
        at = {slot: len(tokens) for slot, tokens in texts.items()}
        for _ in range(3):
            likeliest = [int(row.argmax()) for row in rows]
            if short:
                rows = runtime.decode_one_each(list(at), likeliest)
            else:
                rows = runtime.decode([Chunk(slot, at[slot], [t], True) for slot, t in zip(at, likeliest, strict=True)])
            at = {slot: filled + 1 for slot, filled in at.items()}
            found.append((likeliest, [row.copy() for row in rows]))
        for slot in texts:
            runtime.clear(slot)
    for (tokens, rows), (same, others) in zip(found[:3], found[3:], strict=True):
        assert tokens == same
        for row, other in zip(rows, others, strict=True):
            np.testing.assert_allclose(row, other, atol=1e-3)


@pytest.mark.parametrize("token", [-1, 1 << 30])
def test_one_token_each_refuses_what_would_abort_native_code(runtime, token):
    row = prefill(runtime, 0, prompt(runtime, "hello"))
    with pytest.raises(ValueError):
        runtime.decode_one_each([0], [token])
    for _ in range(CONTEXT):
        last = int(row.argmax())
        try:
            (row,) = runtime.decode_one_each([0], [last])
        except ValueError:
            break
    else:
        pytest.fail("a slot took more than the context")


@pytest.mark.parametrize(
    "broken",
    [
        lambda runtime, tokens: runtime.cut(0, len(tokens) + 1),
        lambda runtime, tokens: runtime.cut(0, 0),
        lambda runtime, tokens: runtime.cut(runtime.slots, 1),
        lambda runtime, tokens: runtime.decode([Chunk(1, 0, tokens, wants_row=True, drafted=len(tokens))]),
        lambda runtime, tokens: runtime.decode([Chunk(1, 0, tokens, wants_row=False, drafted=1)]),
        lambda runtime, tokens: runtime.decode(
            [Chunk(1, 0, tokens[:1] * (runtime.drafted_tokens + 2), wants_row=True, drafted=runtime.drafted_tokens + 1)]
        ),
    ],
)
def test_a_draft_that_breaks_the_rules_is_refused(runtime, broken):
    tokens = prompt(runtime, "hello")
    prefill(runtime, 0, tokens)
    with pytest.raises(ValueError):
        broken(runtime, tokens)
