"""The tree of cached beginnings, on a memory that only keeps books."""

import pytest
from fakes.fake_runtime import FakeRuntime

from agent.engine.prefix_cache import SHORTEST_TOKENS, PrefixCache
from agent.engine.runtime import Chunk

COMMON = list(b"a common beginning of forty bytes or so.")
FIRST = COMMON + list(b" first")
SECOND = COMMON + list(b" second")


@pytest.fixture
def memory():
    return FakeRuntime(slots=2, context_tokens=128, batch_tokens=128, saved_tokens=160)


@pytest.fixture
def cache(memory):
    return PrefixCache(memory)


def hold(memory, cache, slot, tokens):
    """Have a slot hold tokens, computed as far as they are not kept, and keep them."""
    start = cache.enter(slot, tokens)
    if start < len(tokens):
        memory.decode([Chunk(slot, start, tokens[start:], wants_row=False)])
    assert memory.content[slot] == tokens
    cache.store(slot, tokens)


def keep(memory, cache, tokens):
    hold(memory, cache, 0, tokens)
    cache.leave(0)
    memory.clear(0)


def test_what_two_prompts_share_is_computed_and_kept_once(memory, cache):
    keep(memory, cache, FIRST)
    keep(memory, cache, SECOND)
    assert memory.computed == len(FIRST) + len(SECOND) - len(COMMON) - 1  # " " is common, too
    assert cache.tokens == memory.computed


def test_what_nobody_uses_takes_no_room_in_the_context(memory, cache):
    keep(memory, cache, FIRST)
    assert memory.cells_used() == 0


def test_two_at_once_share_the_room(memory, cache):
    keep(memory, cache, FIRST)
    hold(memory, cache, 0, FIRST)
    hold(memory, cache, 1, SECOND)
    assert memory.cells_used() == len(FIRST) + len(SECOND) - len(COMMON) - 1


def test_who_leaves_takes_nothing_from_the_other(memory, cache):
    hold(memory, cache, 0, FIRST)
    hold(memory, cache, 1, SECOND)
    cache.leave(0)
    memory.clear(0)
    assert memory.content[1] == SECOND
    hold(memory, cache, 0, COMMON)
    assert memory.computed == len(FIRST) + len(SECOND) - len(COMMON) - 1


def test_the_longest_kept_beginning_is_found(memory, cache):
    keep(memory, cache, FIRST)
    assert cache.reach(FIRST) == len(FIRST)
    assert cache.reach(SECOND) == len(COMMON) + 1
    assert cache.reach(list(b"something else")) == 0


def test_a_short_beginning_is_not_worth_it(memory, cache):
    keep(memory, cache, FIRST)
    assert cache.enter(0, [*COMMON[: SHORTEST_TOKENS - 1], 0]) == 0
    assert cache.enter(0, [*COMMON[:SHORTEST_TOKENS], 0]) == SHORTEST_TOKENS


def test_the_least_recently_used_leaf_goes_first_and_what_it_stands_on_stays(memory, cache):
    keep(memory, cache, FIRST)
    keep(memory, cache, SECOND)
    keep(memory, cache, FIRST)
    cache.shrink(cache.tokens - 1)
    assert cache.reach(FIRST) == len(FIRST)
    assert cache.reach(SECOND) == len(COMMON) + 1


def test_what_is_in_use_stays(memory, cache):
    keep(memory, cache, FIRST)
    cache.enter(1, FIRST)
    cache.shrink(0)
    assert cache.tokens == len(FIRST)
    cache.leave(1)
    cache.shrink(0)
    assert cache.tokens == 0


def test_the_oldest_make_room(memory, cache):
    for number in range(20):
        keep(memory, cache, [number] * 40)
    assert [number for number in range(20) if cache.reach([number] * 40)] == [16, 17, 18, 19]


def test_a_conversation_grows(memory, cache):
    keep(memory, cache, FIRST)
    longer = FIRST + list(b" and on and on")
    keep(memory, cache, longer)
    assert memory.computed == cache.tokens == cache.reach(longer) == len(longer)


def test_when_the_context_is_full_it_is_computed(memory, cache):
    keep(memory, cache, FIRST)
    memory.cells = 10
    assert cache.enter(0, FIRST) == 0
    assert memory.content[0] == []


def test_a_runtime_that_cannot_share_keeps_nothing():
    memory = FakeRuntime(slots=2, context_tokens=128, batch_tokens=128, saved_tokens=0)
    cache = PrefixCache(memory)
    keep(memory, cache, FIRST)
    assert cache.reach(FIRST) == 0


def named(memory, cache):
    cache.name(COMMON)
    hold(memory, cache, 0, FIRST)
    cache.leave(0)
    memory.clear(0)


def test_what_is_pinned_leaves_after_all_else(memory, cache):
    named(memory, cache)
    for number in range(20):
        keep(memory, cache, [number] * 40)
    assert cache.reach(COMMON) == len(COMMON)
    assert [number for number in range(20) if cache.reach([number] * 40)] == [17, 18, 19]
    cache.shrink(0)
    assert cache.tokens == 0


def test_what_is_named_comes_out_in_parts_and_goes_into_another_cache(memory, cache):
    keep(memory, cache, COMMON[:36] + [0] * 10)
    assert cache.pin(COMMON) is None, "not whole"
    named(memory, cache)
    parts = cache.pin(COMMON)
    assert [(part.start, part.end) for part in parts] == [(0, 36), (36, len(COMMON))]
    later = PrefixCache(memory)
    assert later.adopt(COMMON, parts)
    assert later.tokens == later.reach(FIRST) == len(COMMON)
    assert later.enter(1, FIRST) == len(COMMON)
    assert memory.content[1] == COMMON


def test_what_was_computed_meanwhile_is_not_adopted_twice(memory, cache):
    named(memory, cache)
    parts = cache.pin(COMMON)
    before = cache.tokens
    assert cache.adopt(COMMON, parts)
    assert cache.tokens == before


def keep_for(memory, cache, tokens, scope):
    start = cache.enter(0, tokens, scope)
    memory.decode([Chunk(0, start, tokens[start:], wants_row=False)])
    cache.store(0, tokens, scope)
    cache.leave(0)
    memory.clear(0)
    return start


def test_scopes_do_not_find_what_others_asked(memory, cache):
    assert keep_for(memory, cache, FIRST, "a") == 0
    assert cache.reach(FIRST, "b") == cache.reach(FIRST) == 0
    assert cache.reach(FIRST, "a") == len(FIRST)
    assert keep_for(memory, cache, SECOND, "") == 0
    assert cache.reach(SECOND, "a") == len(COMMON) + 1, "its own"


def test_scopes_share_what_is_named_and_nothing_behind_it(memory, cache):
    cache.name(COMMON)
    assert keep_for(memory, cache, FIRST, "a") == 0
    assert keep_for(memory, cache, FIRST, "b") == len(COMMON)
    assert cache.tokens == 2 * len(FIRST) - len(COMMON)
    assert cache.reach(FIRST) == len(COMMON)


def test_who_entered_before_it_was_named_leaves_nothing_behind(memory, cache):
    keep_for(memory, cache, FIRST, "a")
    assert cache.enter(0, FIRST, "a") == len(FIRST)
    cache.name(COMMON)
    cache.store(0, FIRST, "a")
    cache.leave(0)
    memory.clear(0)
    cache.shrink(0)
    assert cache.tokens == 0
