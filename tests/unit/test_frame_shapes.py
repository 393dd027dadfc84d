"""Two programs of unlike versions must not take each other's frames for their own."""

import hashlib
from typing import get_args

import msgspec

from agent.engine import frames
from agent.types import FailureKind, Token, TopToken

# SHA-256 by protocol; while a number was in no release yet, its digest may be exchanged.
SHAPES = {4: "9dca9614ca038492ec066a07ce0ff4ba07ff1c84e4ea9afe2c8001e5e0992617"}


def shape() -> str:
    """Return a digest of all fields of all frames: names, order, types and defaults, without what is said of them."""

    def bare(tree):
        if isinstance(tree, dict):
            return {key: bare(value) for key, value in sorted(tree.items()) if key not in {"title", "description"}}
        return [bare(value) for value in tree] if isinstance(tree, list) else tree

    kinds = (*get_args(frames.Command), *get_args(frames.Event))
    tree = msgspec.json.schema_components(kinds, ref_template="{name}")
    return hashlib.sha256(msgspec.json.encode([bare(part) for part in (list(tree[0]), tree[1])])).hexdigest()


def test_frames_of_another_shape_have_another_number():
    told = "the frames have changed: raise frames.PROTOCOL and add this digest under the new number"
    assert SHAPES.get(frames.PROTOCOL) == shape(), told


def test_a_changed_field_changes_the_digest(monkeypatch):
    before = shape()
    longer = msgspec.defstruct("Cancel", [("id", int), ("why", str, "")], tag="cancel", tag_field="type", frozen=True)
    monkeypatch.setattr(frames, "Command", frames.Load | longer)
    assert shape() != before


def scored(number: int, alternatives: int) -> frames.Scored:
    token = Token(1, b"a", 0.0, 0.0, 0.0, tuple(TopToken(n, b"some", 0.0) for n in range(alternatives)))
    return frames.Scored(id=number, prompt=(token,))


def test_what_no_frame_holds_is_a_failure_of_its_request_and_nobody_elses(monkeypatch):
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 400)
    step = frames.Step(
        (frames.Piece(1, "a", ()),),
        (frames.Ended(2, "b"),),
        (scored(3, 1), scored(4, 50)),
        (frames.Encoded(id=5, rows=b"x" * 500),),
    )
    sent = b"".join(frames.encode_step(step))
    told = list(frames.event_reader().feed(sent))
    assert [piece.id for one in told for piece in one.pieces] == [1]
    assert [ended.id for one in told for ended in one.ended] == [2]
    whole, failed = (found for one in told for found in one.scored)
    assert whole == scored(3, 1)
    assert (failed.id, failed.prompt, failed.failure.kind) == (4, (), FailureKind.REJECTED)
    assert "ask for fewer" in failed.failure.message
    ((encoded,),) = (one.encoded for one in told if one.encoded)
    assert (encoded.id, encoded.rows) == (5, b"")
    assert "send fewer inputs" in encoded.failure.message


def test_a_step_that_fits_is_one_frame():
    step = frames.Step((frames.Piece(1, "a", ()),), (), (scored(3, 1),))
    assert list(frames.encode_step(step)) == [frames.encode(step)]


def test_a_step_has_no_part_that_is_not_taken_apart():
    assert frames.Step.__struct_fields__ == ("pieces", "ended", "scored", "encoded", "threads")
