"""The circuit of one target, with the clock and the dice in hand."""

from random import Random

import pytest

from agent.escalation.connectivity import (
    BLOCKED_RECHECK_S,
    PROBE_FLOOR_S,
    TROUBLES_BEFORE_PAUSE,
    Circuit,
    Reach,
    full_jitter_s,
)


class Highest(Random):
    """Always draws the end of the range."""

    def uniform(self, a, b):
        return b


@pytest.fixture
def circuit():
    return Circuit(Highest())


def test_at_first_a_probe_is_due(circuit):
    assert circuit.reach is Reach.UNKNOWN
    assert circuit.probe_in_s(100.0) == 0.0


def test_waits_double_up_to_the_cap(circuit):
    waits = []
    for _ in range(8):
        circuit.lost("no route", 0.0, cap_s=60.0)
        waits.append(circuit.probe_in_s(0.0))
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


def test_jitter_is_full():
    random = Random(1)
    waits = [full_jitter_s(random, 3, base_s=1.0, cap_s=60.0) for _ in range(1000)]
    assert min(waits) < 0.2
    assert 7.8 < max(waits) <= 8.0
    assert full_jitter_s(Highest(), 10_000, base_s=2.0, cap_s=900.0) == 900.0


def test_a_probe_never_follows_at_once():
    class Lowest(Random):
        def uniform(self, a, b):
            return a

    circuit = Circuit(Lowest())
    circuit.lost("refused", 0.0, cap_s=60.0)
    assert circuit.probe_in_s(0.0) == PROBE_FLOOR_S


def test_a_found_target_is_online(circuit):
    circuit.lost("refused", 0.0, cap_s=60.0)
    circuit.found()
    assert circuit.reach is Reach.ONLINE
    assert circuit.probe_in_s(0.0) is None


def test_a_target_whose_probes_work_and_sends_do_not_is_not_hammered(circuit):
    for wait_s in (1, 2, 4, 8):
        circuit.found()
        circuit.lost("200, but HTML", 0.0, cap_s=60.0, portal=True)
        assert circuit.reach is Reach.PORTAL
        assert circuit.probe_in_s(0.0) == wait_s


def test_a_reply_starts_the_backoff_anew(circuit):
    for _ in range(5):
        circuit.lost("refused", 0.0, cap_s=60.0)
    circuit.replied(usable=True)
    circuit.lost("refused", 0.0, cap_s=60.0)
    assert circuit.probe_in_s(0.0) == 1.0


def test_news_of_the_network_ends_the_wait_but_not_a_block(circuit):
    circuit.lost("refused", 0.0, cap_s=60.0)
    circuit.retry_now(blocked_too=False)
    assert circuit.probe_in_s(0.0) == 0.0
    circuit.blocked("401", 0.0)
    circuit.retry_now(blocked_too=False)
    assert circuit.probe_in_s(0.0) == BLOCKED_RECHECK_S
    circuit.retry_now(blocked_too=True)
    assert circuit.probe_in_s(0.0) == 0.0


def test_patience_is_kept_over_news_of_the_network(circuit):
    circuit.throttled("429", 0.0, 30.0)
    circuit.retry_now(blocked_too=False)
    assert circuit.hold_s(10.0) == 20.0
    circuit.retry_now(blocked_too=True)
    assert circuit.hold_s(10.0) == 0.0


def test_patience_without_a_time_grows(circuit):
    assert [circuit.throttled("429", 0.0, None) for _ in range(3)] == [4, 8, 16]
    circuit.replied(usable=True)
    assert circuit.throttled("429", 0.0, None) == 4


def test_a_shorter_wait_does_not_end_a_longer_one(circuit):
    circuit.throttled("429", 0.0, 60.0)
    circuit.throttled("429", 0.0, 5.0)
    assert circuit.hold_s(0.0) == 60.0


def test_sends_begin_with_one_and_double(circuit):
    circuit.found()
    windows = []
    for _ in range(4):
        windows.append(circuit.window(6))
        circuit.replied(usable=True)
    assert windows == [1, 2, 4, 6]
    circuit.throttled("429", 0.0, 1.0)
    assert circuit.window(6) == 1


def test_several_troubles_in_a_row_pause_the_target(circuit):
    for _ in range(TROUBLES_BEFORE_PAUSE - 1):
        circuit.troubled(0.0)
    assert circuit.hold_s(0.0) == 0.0
    circuit.troubled(0.0)
    assert circuit.hold_s(0.0) == 2.0


def test_doubt_asks_before_the_next_send(circuit):
    circuit.found()
    circuit.doubted()
    assert circuit.reach is Reach.UNKNOWN
    circuit.blocked("401", 0.0)
    circuit.doubted()
    assert circuit.reach is Reach.BLOCKED
