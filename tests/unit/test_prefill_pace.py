"""How much of the prompts goes into a step, and who waits: figures in, figures out."""

import pytest

from agent.engine.prefill_pace import (
    CROWDED_TOKENS,
    FEWEST_TOKENS,
    LONG_TOKENS,
    SOON_TOKENS,
    STALL_S,
    TOGETHER,
    PrefillPace,
    waits_its_turn,
)
from agent.engine.runtime import Chunk
from agent.engine.sampling import Sampler
from agent.engine.sequence import Sequence
from agent.types import Sampling

MOST = 256


def paced(token_s: float) -> PrefillPace:
    pace = PrefillPace()
    pace.observe([Chunk(0, 0, list(range(100)), wants_row=True)], 100 * token_s)
    return pace


def running(prompt: int, to_go: int, cached: int = 0) -> Sequence:
    sequence = Sequence(1, [0] * prompt, Sampling(), Sampler(Sampling(), []), to_go, None)
    sequence.cached = cached
    return sequence


def test_without_anybody_to_hold_up_a_piece_is_as_large_as_it_can_be():
    assert paced(10.0).room(0, 1, MOST) == MOST
    assert PrefillPace().room(0, 1, MOST) == MOST


def test_before_any_step_was_timed_a_piece_is_small():
    assert PrefillPace().room(1, 1, MOST) == FEWEST_TOKENS


def test_a_piece_takes_no_longer_than_those_who_decode_may_wait():
    token_s = STALL_S / 100
    assert paced(token_s).room(3, 1, MOST) == pytest.approx(100, abs=1)
    assert paced(token_s).room(1, 2, MOST) == pytest.approx(200, abs=1)  # more wait for a first token than decode
    assert paced(token_s).room(1, 9, MOST) == MOST


def test_a_slow_machine_still_gets_on():
    assert paced(100.0).room(5, 1, MOST) == FEWEST_TOKENS
    assert paced(0.0).room(5, 1, MOST) == MOST
    assert paced(100.0).room(5, 1, 10) == 10  # never more than there is room for


def test_steps_that_only_decode_say_nothing():
    pace = paced(STALL_S / 100)
    pace.observe([Chunk(slot, 0, [0], wants_row=True) for slot in range(32)], 100.0)
    assert pace.room(3, 1, MOST) == pytest.approx(100, abs=1)


def test_the_pace_follows_the_machine():
    pace = paced(STALL_S / 100)
    for _ in range(20):
        pace.observe([Chunk(0, 0, [0] * 100, wants_row=True)], 0.5 * STALL_S)
    assert pace.room(3, 1, MOST) == pytest.approx(200, abs=2)


def test_a_long_prompt_waits_for_somebody_who_ends_soon():
    crowd = [running(CROWDED_TOKENS // TOGETHER, SOON_TOKENS) for _ in range(TOGETHER)]
    assert waits_its_turn(LONG_TOKENS, crowd)


@pytest.mark.parametrize(
    ("own", "crowd"),
    [
        (LONG_TOKENS - 1, [running(CROWDED_TOKENS, SOON_TOKENS)] * TOGETHER),  # a short prompt costs little
        (LONG_TOKENS, [running(CROWDED_TOKENS, SOON_TOKENS)] * (TOGETHER - 1)),  # few are served side by side
        (LONG_TOKENS, [running(CROWDED_TOKENS, SOON_TOKENS + 1)] * TOGETHER),  # nobody is sure to end soon
        (LONG_TOKENS, [running(CROWDED_TOKENS, 1, cached=CROWDED_TOKENS)] * TOGETHER),  # they share one beginning
        (LONG_TOKENS, []),
    ],
)
def test_nobody_else_waits(own, crowd):
    assert not waits_its_turn(own, crowd)
