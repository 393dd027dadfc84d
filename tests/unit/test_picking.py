"""Which of several measured models is taken, and what the next better one would need."""

import msgspec
import pytest
from fakes.measured import candidate

from agent.evaluation.picking import Budget, choose
from agent.models.fitting import MIB, Room

ROOM = Room(bytes=1000 * MIB, why="what --memory allows")
BUDGET = Budget(room=ROOM)


def test_the_best_is_taken_and_of_equally_good_ones_the_fastest():
    choice = choose(
        [candidate("good", 18, 10), candidate("fast", 17, 30, bits=1.02), candidate("poor", 12, 90)], BUDGET
    )
    assert choice.picked == "fast"
    assert "cannot be told apart by quality (good)" in choice.why
    assert not choice.next_better
    choice = choose([candidate("good", 18, 10), candidate("fast", 16, 30)], BUDGET)
    assert choice.picked == "good"
    assert choose([candidate("good", 18, 10), candidate("fast", 18, 30, bits=1.1)], BUDGET).picked == "good"


@pytest.mark.parametrize(
    ("better", "budget", "needs"),
    [
        (candidate("more", 19, mib=1200), BUDGET, "201 MiB more memory"),
        (candidate("more", 19, first_ms=900), Budget(room=ROOM, first_token_ms=500), "--first-token 900"),
        (candidate("more", mib=1500, measured=False), BUDGET, "501 MiB more memory"),
    ],
)
def test_what_the_next_better_one_would_need(better, budget, needs):
    choice = choose([candidate("plain"), better], budget)
    assert choice.picked == "plain"
    assert choice.next_better.startswith("more: ")
    assert needs in choice.next_better


def test_what_took_more_memory_than_reckoned_is_not_taken():
    one = candidate("hungry")
    one = msgspec.structs.replace(one, speed=msgspec.structs.replace(one.speed, memory_bytes=1100 * MIB))
    choice = choose([one], BUDGET)
    assert choice.picked is None
    assert "took 1100 MiB when it ran" in choice.verdicts[0].refusal.reason


def test_below_the_floor_only_by_force_and_never_what_could_not_be_measured():
    poor, broken = candidate("poor", 3), candidate("broken", fault="it cannot be measured: no")
    choice = choose([poor, broken], BUDGET)
    assert choice.picked is None
    assert "the floor is 10" in choice.verdicts[0].refusal.reason
    assert "--force" in choice.next_better
    assert choose([poor, broken], Budget(room=ROOM, below_floor=True)).picked == "poor"


def test_a_higher_bar():
    assert choose([candidate("plain", 15)], Budget(room=ROOM, least_followed=0.75)).picked == "plain"
    refused = choose([candidate("plain", 15)], Budget(room=ROOM, least_followed=0.8))
    assert refused.picked is None
    assert "--min-quality 0.75" in refused.next_better


def test_the_demo_model_only_where_there_is_no_other():
    demo = candidate("demo", 3, 90, demo=True)
    assert choose([demo, candidate("plain", 11)], BUDGET).picked == "plain"
    alone = choose([demo], BUDGET)
    assert alone.picked == "demo"
    assert "no other is above the floor" in alone.why
    forced = Budget(room=ROOM, below_floor=True)
    assert choose([candidate("good demo", 8, demo=True), candidate("worse", 3, 90)], forced).picked == "good demo"
    assert choose([demo], Budget(room=ROOM, least_followed=0.9)).picked is None
