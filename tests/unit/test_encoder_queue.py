"""Who is answered when, and what one request can do to another."""

import numpy as np
import pytest
from fakes import plain_encoders as plain

from agent.engine import encoder_queue, frames
from agent.engine.encoder_queue import EncoderQueue
from agent.engine.onnx_encoder_runtime import OnnxEncoderRuntime
from agent.types import FailureKind


class Watched(OnnxEncoderRuntime):
    """Notes what ran together; refuses a token as a graph does."""

    refused = None

    def __init__(self, folder):
        super().__init__(plain.model_file(folder, context_tokens=64), threads=1)
        self.batches = []

    def rows(self, batch):
        self.batches.append([len(tokens.ids) for tokens in batch])
        if any(self.refused in tokens.ids for tokens in batch):
            raise RuntimeError("index out of range")
        return super().rows(batch)


@pytest.fixture
def runtime(tmp_path):
    return Watched(plain.embedder(tmp_path))


@pytest.fixture
def queue(runtime):
    return EncoderQueue(runtime)


def ask(number, *texts, **more):
    return frames.Encode(id=number, texts=texts, **more)


def drained(queue):
    found = {}
    while not queue.idle:
        found |= {one.id: one for one in queue.step()}
    return found


def matrix(encoded):
    assert encoded.failure is None
    return np.frombuffer(encoded.rows, "<f4").reshape(-1, encoded.width)


def test_requests_share_a_batch_and_get_their_own_rows(queue, runtime):
    queue.submit(ask(1, "good"))
    queue.submit(ask(2, "bad", "good"))
    found = drained(queue)
    assert runtime.batches == [[3, 3, 3]]
    assert np.array_equal(matrix(found[1])[0], matrix(found[2])[1])
    assert found[2].prompt_tokens == 6


def test_texts_of_unlike_length_do_not(queue, runtime):
    queue.submit(ask(1, "good", "good " * 40, "bad"))
    assert matrix(drained(queue)[1]).shape == (3, 4)
    assert runtime.batches == [[3, 3], [42]]


def test_a_long_list_does_not_hold_up_a_short_one(queue, runtime):
    queue.submit(ask(1, *(f"good {'bad ' * (n % 3)}" for n in range(1000)), scope=None))
    queue.submit(ask(2, "bad", scope=None))
    ended = []
    while not ended:
        ended = queue.step()
    assert [one.id for one in ended] == [2]
    assert sum(map(len, runtime.batches)) <= encoder_queue.LOOKED_AT
    assert matrix(drained(queue)[1]).shape == (1000, 4)


def test_a_batch_is_bounded_by_its_padded_tokens(queue, runtime, monkeypatch):
    monkeypatch.setattr(encoder_queue, "BATCH_TOKENS", 100)
    queue.submit(ask(1, *["good " * 38] * 5, scope=None))
    assert matrix(drained(queue)[1]).shape == (5, 4)
    assert runtime.batches == [[40, 40], [40, 40], [40]]


def test_identical_texts_are_computed_once_within_their_scope(queue, runtime):
    for number, scope in enumerate(("", "", "salt a", "salt b", "salt a")):
        queue.submit(ask(number, "good", scope=scope))
        drained(queue)
    assert len(runtime.batches) == 3
    queue.submit(ask(9, "good", scope=None))
    queue.submit(ask(10, "good", scope=None))
    drained(queue)
    assert runtime.batches[3:] == [[3, 3]], "nothing is kept without a scope"


def test_tokens_and_the_text_of_their_numbers_are_not_the_same(queue, runtime):
    queue.submit(ask(1, (4, 5)))
    assert not np.array_equal(matrix(drained(queue)[1]), np.zeros((1, 4)))
    queue.submit(ask(2, "4 5"))
    drained(queue)
    assert len(runtime.batches) == 2


def test_what_is_kept_is_bounded(runtime):
    queue = EncoderQueue(runtime, cache_bytes=3 * (16 + 200))
    for number, text in enumerate(("good", "bad", "Anna", "Paris", "good")):
        queue.submit(ask(number, text))
        drained(queue)
    assert len(runtime.batches) == 5, "the oldest went"
    queue.submit(ask(9, "Paris"))
    drained(queue)
    assert len(runtime.batches) == 5


def test_shorter_vectors_have_length_one(queue):
    queue.submit(ask(1, "good bad", dimensions=2))
    found = matrix(drained(queue)[1])
    assert found.shape == (1, 2)
    assert np.linalg.norm(found) == pytest.approx(1)


def test_a_text_at_fault_ends_its_request_and_no_other(queue, runtime):
    runtime.refused = plain.ID["Paris"]
    queue.submit(ask(1, "good", "Paris"))
    queue.submit(ask(2, "bad"))
    queue.submit(ask(3, "good " * 63))
    found = drained(queue)
    assert found[1].failure.kind is FailureKind.REJECTED
    assert found[1].failure.param == "input[1]"
    assert found[2].failure is None
    assert found[3].failure.kind is FailureKind.CONTEXT_OVERFLOW
    assert found[3].failure.message == "input 0 has 65 tokens, the model reads 64"


def test_what_the_model_was_not_made_for_is_refused(queue):
    queue.submit(ask(1, "good", query="bad"))
    queue.submit(ask(2, "good", dimensions=5))
    found = drained(queue)
    assert "does not rank: it was made to embed" in found[1].failure.message
    assert found[2].failure.param == "dimensions"


def test_a_cancel_ends_a_request_once(queue, runtime):
    queue.submit(ask(1, *["good"] * 200, scope=None))
    queue.step()
    queue.cancel(1)
    queue.cancel(1)
    queue.cancel(77)
    (ended,) = queue.step()
    assert ended.failure.kind is FailureKind.CANCELLED
    assert queue.idle
    ran = len(runtime.batches)
    queue.submit(ask(2, "bad"))
    assert matrix(drained(queue)[2]).shape == (1, 4)
    assert runtime.batches[ran:] == [[3]], "nothing of the cancelled one ran"


def test_a_deadline_that_passed_ends_a_request(queue):
    queue.submit(ask(1, "good", deadline_ms=0.0))
    assert drained(queue)[1].failure.kind is FailureKind.TIMEOUT


def test_tagged_pieces_come_in_the_order_of_the_texts(tmp_path):
    queue = EncoderQueue(OnnxEncoderRuntime(plain.model_file(plain.tagger(tmp_path)), threads=1))
    queue.submit(ask(1, "Paris", "good", "Anna"))
    found = drained(queue)[1]
    assert [[span.label for span in spans] for spans in found.spans] == [["LOC"], [], ["PER"]]
    assert not found.rows
