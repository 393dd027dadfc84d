"""JSON is taken strictly, and every error is written in one shape."""

import json
import tracemalloc

import pytest

from agent.api.wire import DEEPEST, error_response, parse_json, read_body
from agent.errors import Busy, EngineFailed, InvalidRequest, OutriderError, PayloadTooLarge, StillRunning


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"{} {}",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1e400}',
        b'{"a": ' + b"1" * 5000 + b"}",
        b'{"a": "\xff"}',
        b'{"a": "\xed\xa0\x80"}',
        b'{"a": "\\ud800"}',
        b'{"a": "\\udc00x"}',
        b'{"a": "\\ud800\\u0041"}',
        b'{"a": "\x01"}',
        b"\xef\xbb\xbf{}",
        b"{'a': 1}",
        b'{"a": 1,}',
        b"\x00",
    ],
)
def test_what_is_not_strict_json_is_refused(raw):
    with pytest.raises(InvalidRequest) as caught:
        parse_json(raw)
    assert caught.value.code == "invalid_json"


def test_pairs_of_surrogates_are_text():
    assert parse_json(b'{"a": "\\ud83d\\ude00"}') == {"a": "\N{GRINNING FACE}"}


@pytest.mark.parametrize("depth", [DEEPEST + 1, 500, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_deep_nesting_is_refused(depth, opening, closing):
    inner = depth - 1
    with pytest.raises(InvalidRequest, match="nested deeper"):
        parse_json(b'{"a":' + opening * inner + b"1" + closing * inner + b"}")


def test_the_deepest_allowed_and_wide_bodies_pass():
    inner = DEEPEST - 1
    assert parse_json(b'{"a":' + b"[" * inner + b"]" * inner + b"}")
    assert len(parse_json(b'{"a":[' + b",".join([b"[]"] * 1000) + b"]}")["a"]) == 1000


def test_brackets_in_text_are_not_nesting():
    text = "[{" * 500
    assert parse_json(json.dumps({"a": text}).encode()) == {"a": text}


def test_errors_have_the_shape_and_say_whether_to_send_again():
    response = error_response(InvalidRequest("no", param="x", code="invalid_value"))
    assert json.loads(response.body) == {
        "error": {"message": "no", "type": "invalid_request_error", "param": "x", "code": "invalid_value"}
    }
    assert error_response(Busy("full")).headers["retry-after"] == "1"
    assert "x-should-retry" not in error_response(Busy("full")).headers
    assert "x-should-retry" not in error_response(StillRunning("later")).headers
    assert error_response(EngineFailed("died")).headers["x-should-retry"] == "false"


def test_every_error_can_be_written():
    waiting = [OutriderError]
    while waiting:
        kind = waiting.pop()
        waiting += (child for child in kind.__subclasses__() if child.__module__ == OutriderError.__module__)
        response = error_response(kind("what, why, what to do"))
        assert response.status_code == kind.status
        assert json.loads(response.body)["error"]["code"] == kind.code


class Arriving:
    """A request whose body comes in pieces."""

    def __init__(self, pieces):
        self.pieces, self.taken = pieces, 0

    async def stream(self):
        for piece in self.pieces:
            self.taken += 1
            yield piece


async def test_a_refused_body_is_read_to_its_end_but_not_kept():
    request = Arriving(bytes(1 << 20) for _ in range(32))
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge):
            await read_body(request, 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()
    assert request.taken == 32  # so that the client gets to read the answer


async def test_a_body_without_end_is_left():
    request = Arriving(bytes(1 << 20) for _ in range(10_000))
    with pytest.raises(PayloadTooLarge):
        await read_body(request, 1 << 20)
    assert request.taken < 100
