"""How much of the prompts goes into a step: figures in, figures out."""

from fakes.fake_runtime import FakeRuntime

from agent.engine import frames
from agent.engine.prefill_pace import STALL_S, STEP_S, TILE_TOKENS, PrefillPace
from agent.engine.runtime import Chunk
from agent.engine.scheduler import Scheduler
from agent.types import Message, Sampling

MOST = 512


def paced(affordable: int) -> PrefillPace:
    """Return a pace that has seen so many tokens take as long as a piece may."""
    pace = PrefillPace()
    observe(pace, affordable)
    return pace


def observe(pace: PrefillPace, affordable: int) -> None:
    pace.observe([Chunk(0, 0, [0] * 100, wants_row=True)], 100 * STALL_S / affordable)


def test_without_anybody_to_hold_up_a_piece_may_take_longer():
    assert paced(100).room(0, 1, MOST) == round(100 * STEP_S / STALL_S / TILE_TOKENS) * TILE_TOKENS
    assert paced(1000).room(0, 1, MOST) == MOST
    assert paced(1).room(0, 1, MOST) == TILE_TOKENS


def test_before_any_step_was_timed_a_piece_is_one_tile():
    assert PrefillPace().room(0, 1, MOST) == PrefillPace().room(1, 1, MOST) == TILE_TOKENS


def test_a_piece_takes_about_as_long_as_those_who_decode_may_wait():
    assert paced(140).room(3, 1, MOST) == 2 * TILE_TOKENS
    assert paced(90).room(1, 2, MOST) == 3 * TILE_TOKENS  # more wait for a first token than decode
    assert paced(100).room(1, 9, MOST) == paced(100).room(0, 9, MOST)  # but for no longer than that


def test_a_slow_machine_still_gets_on():
    assert paced(1).room(5, 1, MOST) == TILE_TOKENS
    assert paced(10_000).room(5, 1, MOST) == MOST
    assert paced(1).room(5, 1, 10) == 10  # never more than there is room for


def test_steps_without_a_piece_say_nothing():
    pace = paced(140)
    pace.observe([Chunk(slot, 0, [0], wants_row=True) for slot in range(80)], 100.0)
    assert pace.room(3, 1, MOST) == 2 * TILE_TOKENS


def test_the_pace_follows_the_machine():
    pace = paced(70)
    for _ in range(20):
        observe(pace, 200)
    assert pace.room(3, 1, MOST) == 3 * TILE_TOKENS


def test_no_step_ends_with_a_scrap_of_the_next_prompt():
    runtime = FakeRuntime(slots=3, context_tokens=400, batch_tokens=128, saved_tokens=0)
    steps = []
    decode = runtime.decode
    runtime.decode = lambda chunks: steps.append([len(chunk.tokens) for chunk in chunks]) or decode(chunks)
    serving = Scheduler(runtime, waiting_line=0)
    serving._pace.room = lambda decoding, prefilling, most: most
    for number, size in enumerate((100, 90, 20)):
        text = chr(97 + number) * size
        sampling = Sampling(max_tokens=1)
        serving.submit(frames.Generate(id=number, messages=(Message("user", text),), sampling=sampling))
    while not serving.idle:
        serving.step()
    assert steps == [[100], [90, 20]], "the second prompt does not begin with what 28 tokens have room for"
