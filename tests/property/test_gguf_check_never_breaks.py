"""Whatever is in the file: a header or ModelRejected, nothing else."""

from fakes.gguf import gguf
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ModelRejected
from agent.models.gguf_check import GgufHeader, check_gguf_bytes

GOOD = gguf()
HEAD = len(GOOD) - 192


def outcome(data: bytes):
    try:
        return check_gguf_bytes(data)
    except ModelRejected as error:
        return error


@given(st.lists(st.tuples(st.integers(0, HEAD - 1), st.integers(0, 255)), min_size=1, max_size=12))
def test_flipped_bytes(changes):
    data = bytearray(GOOD)
    for place, value in changes:
        data[place] = value
    assert isinstance(outcome(bytes(data)), GgufHeader | ModelRejected)


@given(st.binary(max_size=400))
def test_noise_after_the_magic(tail):
    assert isinstance(outcome(b"GGUF\3\0\0\0" + tail), GgufHeader | ModelRejected)


@given(st.integers(0, HEAD), st.integers(0, HEAD))
def test_spliced(one, other):
    assert isinstance(outcome(GOOD[:one] + GOOD[other:]), GgufHeader | ModelRejected)
