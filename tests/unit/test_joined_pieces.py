"""When what a step brought is told: at once, or with the next."""

from agent.engine import frames
from agent.engine.joined_pieces import JOIN_S, JoinedPieces
from agent.types import Token


def piece(number, text, thought=""):
    return frames.Piece(number, text, (Token(1, text.encode(), -0.5, -1.0, 0.2),) if text else (), thought)


def step(*pieces, ended=()):
    return frames.Step(tuple(pieces), tuple(frames.Ended(number) for number in ended))


def begun(*numbers):
    joined = JoinedPieces()
    assert joined.add(step(*(piece(number, "first") for number in numbers)), 0.0) is not None
    return joined


def test_the_first_piece_of_an_answer_waits_for_nothing():
    joined = begun(1)
    assert joined.add(step(piece(1, "a")), 0.001) is None
    told = joined.add(step(piece(1, "b"), piece(2, "c")), 0.002)
    assert [(one.id, one.text) for one in told.pieces] == [(1, "ab"), (2, "c")]
    assert joined.add(step(piece(2, "d")), 0.003) is None


def test_what_follows_closely_goes_out_together_and_loses_nothing():
    joined = begun(1)
    told = [joined.add(step(piece(1, f"{number} ")), (number + 1) * JOIN_S / 8) for number in range(40)]
    told = [due.pieces for due in (*told, joined.add(step(ended=[1]), 6 * JOIN_S)) if due]
    pieces = [one for group in told for one in group]
    assert "".join(one.text for one in pieces) == "".join(f"{number} " for number in range(40))
    assert b"".join(token.text_bytes for one in pieces for token in one.tokens).decode() == "".join(
        one.text for one in pieces
    )
    assert len(told) < 40 / 4
    assert joined.flush() is None


def test_the_end_of_an_answer_brings_all_that_is_held():
    joined = begun(1, 2)
    assert joined.add(step(piece(1, "a"), piece(2, "b")), 0.001) is None
    told = joined.add(step(piece(2, "c"), ended=[1]), 0.002)
    assert [(one.id, one.text) for one in told.pieces] == [(1, "a"), (2, "bc")]
    assert [one.id for one in told.ended] == [1]
    assert joined.add(step(piece(1, "again")), 0.003) is not None, "the number of an answer that ended is new"


def test_slow_steps_are_told_one_by_one():
    joined = begun(1)
    for number in range(1, 5):
        assert joined.add(step(piece(1, "a")), number * 1.5 * JOIN_S) is not None


def test_what_a_run_brought_is_as_old_as_its_first_token():
    joined = begun(1)
    assert joined.add(step(piece(1, "abcd")), 0.7 * JOIN_S, held_s=0.5 * JOIN_S) is not None


def test_a_step_that_brought_nothing_is_not_told():
    joined = begun(1)
    assert joined.add(step(), 0.001) is None
    assert joined.add(step(), 1.0) is None


def test_a_thought_never_moves_before_a_text():
    joined = begun(1)
    joined.add(step(piece(1, "", "so ")), 0.001)
    joined.add(step(piece(1, "yes", "then")), 0.002)
    joined.add(step(piece(1, "", "hm")), 0.003)
    assert [(one.text, one.thought) for one in joined.flush().pieces] == [("yes", "so then"), ("", "hm")]
