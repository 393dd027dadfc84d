"""The size of the cache of keys and values."""

import pytest

from agent.engine.kv_cache import MIB, cell_count
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
