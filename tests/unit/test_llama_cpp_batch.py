"""What of a step goes through the model in a call of its own."""

from agent.engine.llama_cpp_batch import few_tokens
from agent.engine.runtime import Chunk


def chunk(tokens: int) -> Chunk:
    return Chunk(0, 0, [0] * tokens, wants_row=True)


def test_those_who_decode_go_apart_from_a_piece_of_a_prompt():
    assert few_tokens([chunk(1), chunk(3), chunk(64)]) == 2
    assert few_tokens([chunk(1), chunk(40), chunk(24)]) == 1


def test_what_fills_no_tile_or_has_nobody_beside_it_goes_together():
    assert few_tokens([chunk(1), chunk(40)]) == 0
    assert few_tokens([chunk(64), chunk(1)]) == 0
    assert few_tokens([chunk(1)] * 64) == 0
    assert few_tokens([]) == 0
