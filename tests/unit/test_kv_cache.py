"""The size of the cache of keys and values."""

import pytest

from agent.engine.kv_cache import MIB, cell_count, scoring_cell_count
from agent.engine.runtime import ModelUnloadable

FIGURES = {"cell_bytes": 23_040, "weight_bytes": 98 * MIB}


def test_with_memory_enough_it_is_what_was_asked_for():
    assert cell_count(16_384, free_bytes=8192 * MIB, **FIGURES) == 16_384


def test_with_less_memory_it_is_less_and_leaves_half_to_others():
    cells = cell_count(16_384, free_bytes=400 * MIB, **FIGURES)
    assert cells % 256 == 0
    assert 0.4 * (400 - 98) * MIB < cells * FIGURES["cell_bytes"] <= 0.5 * (400 - 98) * MIB


@pytest.mark.parametrize("free", [0, 50, 105])
def test_when_nothing_fits_the_figures_are_told(free):
    with pytest.raises(ModelUnloadable, match=rf"{free} MiB are free, the weights take 98 MiB"):
        cell_count(16_384, free_bytes=free * MIB, **FIGURES)


def test_a_small_wish_is_not_rounded_away():
    assert cell_count(256, free_bytes=8192 * MIB, **FIGURES) == 256


@pytest.mark.parametrize(
    ("wanted", "free", "expected"),
    [(100, 8192, 512), (513, 8192, 1024), (513, 40, 768), (4100, 8192, 8192), (4100, 200, 4352)],
)
def test_a_scoring_context_has_room_to_grow_where_memory_is_free(wanted, free, expected):
    assert scoring_cell_count(wanted, cell_bytes=23_040, free_bytes=free * MIB) == expected


def test_a_scoring_context_that_does_not_fit_is_refused_with_the_figures():
    with pytest.raises(ModelUnloadable, match=r"takes 4352 tokens of 23040 bytes, and half of the 100 MiB"):
        scoring_cell_count(4100, cell_bytes=23_040, free_bytes=100 * MIB)
