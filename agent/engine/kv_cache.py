"""How many tokens of keys and values fit: what is wanted, or what the free memory allows."""

from __future__ import annotations

from agent.engine.runtime import ModelUnloadable
from agent.types import KvType

BYTES_PER_VALUE = {KvType.F16: 2.0, KvType.Q8_0: 34 / 32}  # blocks of 32 values and one scale

MEMORY_SHARE = 0.5  # of what the weights leave free; the rest is for other programs and our own buffers
CELL_STEP = 256  # llama.cpp rounds to this
SMALLEST_SCORING_CELLS = 512
MIB = 1 << 20


def cell_count(wanted: int, *, cell_bytes: int, free_bytes: int, weight_bytes: int) -> int:
    """Return how many cells (one token each) to ask for: ``wanted``, or fewer where memory is short.

    The weights are mapped from the file: memory counts as free while they are in it, so they are
    taken off here. Raises ModelUnloadable, with the figures, when not even the least fits.
    """
    room = max(0, free_bytes - weight_bytes) * MEMORY_SHARE
    cells = min(wanted, int(room) // cell_bytes // CELL_STEP * CELL_STEP)
    if cells < min(wanted, CELL_STEP):
        raise ModelUnloadable(
            f"memory is short: {free_bytes // MIB} MiB are free, the weights take {weight_bytes // MIB} MiB, and half of "
            f"the rest must hold {CELL_STEP} tokens of {cell_bytes} bytes; close other programs or take a smaller model"
        )
    return cells


def scoring_cell_count(wanted: int, *, cell_bytes: int, free_bytes: int) -> int:
    """Return how many cells a scoring context gets: at least ``wanted``, with room to grow where it is free.

    Raises ModelUnloadable, with the figures, when the free memory cannot hold them.
    """
    needed = -(-wanted // CELL_STEP) * CELL_STEP
    roomy = SMALLEST_SCORING_CELLS
    while roomy < wanted:
        roomy *= 2  # not made anew for every prompt that is a little longer
    if roomy * cell_bytes <= free_bytes * MEMORY_SHARE:
        return roomy
    if needed * cell_bytes <= free_bytes * MEMORY_SHARE:
        return needed
    raise ModelUnloadable(
        f"memory is short: to score prompt and answers takes {needed} tokens of {cell_bytes} bytes, and half of the "
        f"{free_bytes // MIB} MiB that are free must hold them; close other programs or ask for less"
    )
