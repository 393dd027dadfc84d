"""The tree of cached beginnings, on a memory that only keeps books."""

import pytest
from fakes.fake_runtime import FakeRuntime

from agent.engine.prefix_cache import PrefixCache
from agent.engine.runtime import Chunk

COMMON = list(b"a common beginning of forty bytes or so.")
FIRST = COMMON + list(b" first")
SECOND = COMMON + list(b" second")


@pytest.fixture
def memory():
    return FakeRuntime(slots=2, context_tokens=128, batch_tokens=128, prefixes=4)


@pytest.fixture
def cache(memory):
    return PrefixCache(memory)


def keep(memory, cache, tokens):
    """Compute tokens in slot 0, keep them, leave."""
    standing = cache.enter(0, tokens)
    start = standing.end if standing else 0
    if start < len(tokens):
        memory.decode([Chunk(0, start, tokens[start:], wants_row=False)])
    standing = cache.store(0, tokens, standing)
    cache.leave(standing)
    memory.clear(0)


def test_what_two_prompts_share_is_held_once(memory, cache):
    keep(memory, cache, FIRST)
    keep(memory, cache, SECOND)
    assert memory.computed == len(FIRST) + len(SECOND) - len(COMMON) - 1  # " " is common, too
    assert cache.cells == memory.cells_used() == memory.computed


def test_the_longest_cached_beginning_is_found(memory, cache):
    keep(memory, cache, FIRST)
    assert cache.reach(FIRST) == len(FIRST)
    assert cache.reach(SECOND) == len(COMMON) + 1
    assert cache.reach(list(b"something else")) == 0
    assert cache.reach(COMMON[:10]) == 0, "too short to be worth it"


def test_a_slot_gets_exactly_the_tokens_of_its_beginning(memory, cache):
    keep(memory, cache, FIRST)
    standing = cache.enter(1, SECOND)
    assert memory.content[1] == SECOND[: standing.end]


def test_the_least_recently_used_leaf_goes_first_and_what_it_stands_on_stays(memory, cache):
    keep(memory, cache, FIRST)
    keep(memory, cache, SECOND)
    keep(memory, cache, FIRST)
    cache.shrink(cache.cells - 1)
    assert cache.reach(FIRST) == len(FIRST)
    assert cache.reach(SECOND) == len(COMMON) + 1


def test_what_is_in_use_stays(memory, cache):
    keep(memory, cache, FIRST)
    standing = cache.enter(1, FIRST)
    cache.shrink(0)
    assert cache.cells == standing.end == len(FIRST)
    cache.leave(standing)
    memory.clear(1)
    cache.shrink(0)
    assert cache.cells == memory.cells_used() == 0


def test_without_a_sequence_to_spare_the_oldest_makes_room(memory, cache):
    for number in range(20):
        keep(memory, cache, [number] * 40)
    assert [number for number in range(20) if cache.reach([number] * 40)] == [16, 17, 18, 19]


def test_two_who_computed_the_same_hold_it_once_afterwards(memory, cache):
    for slot in (0, 1):
        memory.decode([Chunk(slot, 0, FIRST, wants_row=False)])
    first = cache.store(0, FIRST, None)
    assert memory.cells_used() == 2 * len(FIRST)
    second = cache.store(1, FIRST, None)
    assert first is second
    assert memory.cells_used() == cache.cells == len(FIRST)


def test_a_conversation_grows_in_place(memory, cache):
    keep(memory, cache, FIRST)
    standing = cache.enter(0, FIRST)
    memory.decode([Chunk(0, len(FIRST), list(b" and on"), wants_row=False)])
    longer = FIRST + list(b" and on")
    assert cache.store(0, longer, standing) is standing
    assert cache.reach(longer) == len(longer)


def test_a_runtime_that_cannot_share_caches_nothing():
    memory = FakeRuntime(slots=2, context_tokens=128, batch_tokens=128, prefixes=0)
    cache = PrefixCache(memory)
    keep(memory, cache, FIRST)
    assert cache.reach(FIRST) == memory.cells_used() == 0
