"""What was measured, and what follows from it."""

import msgspec
import pytest

from agent.device import PowerState
from agent.errors import ModelRejected
from agent.evaluation import needles
from agent.evaluation.instructions import INSTRUCTIONS
from agent.evaluation.quality import shipped_text
from agent.models.artifact import StoredFile, StoredModel
from agent.models.quality import Estimate, Needles, Quality, Speed, TextFigures
from agent.models.serving import served
from agent.strain import wait_while_strained
from agent.types import ModelFormat

DIGEST = "a" * 64
TEXT = TextFigures(
    name="shipped text",
    tokens=1000,
    perplexity=Estimate(12.0, 11.0, 13.0),
    bits_per_byte=1.0,
    agreement=Estimate(0.9, 0.88, 0.92),
)
GOOD = Quality(
    digest=DIGEST,
    measured_at_ms=1,
    machine="",
    runtime="llama.cpp",
    reference="big",
    reference_digest="b" * 64,
    texts=(TEXT,),
    instructions_followed=15,
    instructions_asked=20,
    needles=(Needles(500, 5, 5), Needles(1000, 4, 5)),
    speed=Speed(tokens_per_second=50.0, first_token_ms=100.0, prompt_tokens=256, memory_bytes=1 << 28),
)


def model(quality, **changes):
    return StoredModel(
        name="small",
        title="Small",
        format=ModelFormat.GGUF,
        files=(StoredFile(name="small.gguf", bytes=1, sha256=DIGEST),),
        licence="MIT",
        source="file",
        context_tokens=8192,
        quality=quality,
        **changes,
    )


def test_a_good_model_is_served_with_its_whole_context():
    assert GOOD.faults == ()
    assert served(model(GOOD), "/x", exempt=False).context_tokens == 8192


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"instructions_followed": 9}, "9 of 20 direct instructions, the floor is 10"),
        ({"texts": (msgspec.structs.replace(TEXT, fault="no numbers"),)}, "no numbers"),
        ({"texts": (msgspec.structs.replace(TEXT, agreement=Estimate(0.4, 0.3, 0.5)),)}, "40% of the tokens"),
    ],
)
def test_below_the_floor_a_model_is_served_by_hand_only(changes, told):
    poor = msgspec.structs.replace(GOOD, **changes)
    with pytest.raises(ModelRejected, match=told) as refused:
        served(model(poor), "/x", exempt=False)
    assert "outrider models allow small --force" in str(refused.value)
    assert served(model(poor, allowed=True), "/x", exempt=False)
    assert served(model(poor), "/x", exempt=True)


def test_what_was_measured_of_other_bytes_counts_for_nothing():
    other = msgspec.structs.replace(GOOD, digest="c" * 64, instructions_followed=0)
    assert served(model(other), "/x", exempt=False)


@pytest.mark.parametrize(
    ("found", "useful"),
    [
        ([(500, 5), (1000, 3)], None),  # nothing has failed: the nominal context holds
        ([(500, 5), (1000, 3), (2000, 2)], 1000),
        ([(500, 2)], None),  # says nothing of a length
    ],
)
def test_the_useful_context_is_the_longest_that_passed(found, useful):
    quality = msgspec.structs.replace(GOOD, needles=tuple(Needles(tokens, hits, 5) for tokens, hits in found))
    assert quality.useful_context_tokens == useful
    assert served(model(quality), "/x", exempt=False).context_tokens == useful or useful is None


def test_the_needles_of_a_length_share_their_beginning():
    asked = needles.questions(1024, 13.0)
    stories = {question.messages[0].content.split("\n\n")[0] for question in asked}
    assert len(stories) == 1
    (story,) = stories
    places = [story.index(question.answer) / len(story) for question in asked]
    assert places == sorted(places)
    assert all(abs(place - question.depth) < 0.08 for place, question in zip(places, asked, strict=True))


def test_there_are_twenty_instructions_and_an_echo_follows_few():
    assert len(INSTRUCTIONS) == 20
    assert sum(instruction.is_followed_by(instruction.question) for instruction in INSTRUCTIONS) <= 3


def test_the_shipped_text_is_there():
    assert 4000 < len(shipped_text().text.encode()) < 16000


def test_long_work_waits_while_the_battery_is_low_and_says_so_once():
    states = [PowerState(battery_percent=20.0, on_battery=True)] * 3 + [PowerState()]
    told, slept = [], []
    wait_while_strained(told.append, look=lambda: states.pop(0), sleep=slept.append)
    assert told == ["the battery is at 20 %"]
    assert len(slept) == 3
