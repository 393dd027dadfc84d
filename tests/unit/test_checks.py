import pytest

from agent.confidence import checks


@pytest.mark.parametrize(
    ("value", "source", "copied"),
    [
        ("7:15 pm", "Could we say 7:15 PM, please?", True),
        ("Ann", "Annette called", False),
        ("“Ann”", "it was Ann.", True),
        ("two of us", "The Two of us", True),
        ("", "anything", False),
        ("7:15pm", "7:15 pm", False),
    ],
)
def test_a_value_is_copied_as_whole_words(value, source, copied):
    assert checks.is_copied(value, source) is copied


@pytest.mark.parametrize(
    ("value", "source", "traceable"),
    [
        (12, "a dozen, so 12.", True),
        (12, "about 120", False),
        (3, "the three of us", True),
        (0.05, "a 5% yield", True),
        (1500, "it costs 1,500 euros", True),
        (True, "", True),
        (None, "", True),
        ("Paris", "I fly to Paris", True),
        ("London", "I fly to Paris", False),
        ("2024-05-01", "on 2024-05-01 at noon", True),
        ("area-12", "room 12", False),
    ],
)
def test_a_value_is_traced_to_the_input(value, source, traceable):
    assert checks.is_traceable(value, source) is traceable


def test_the_share_of_traced_values_looks_into_lists_and_objects():
    tree = {"city": "Paris", "days": [3, 4], "note": None}
    assert checks.traceable_share([tree], "Paris for 3 days") == pytest.approx(3 / 4)
    assert checks.traceable_share([], "x") == 1


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("2 + 2 = 4, and 3 * 7 = 21", 0),
        ("2 + 2 = 5", 1),
        ("10 / 4 = 2.5; 7 - 9 = -2; 1,000 x 2 = 2,000", 0),
        ("1 / 3 = 0.33", 0),
        ("5 / 0 = 1", 1),
        ("$3 + $4 = $8", 1),
        ("no sums at 7:15", 0),
    ],
)
def test_written_calculations_are_done_again(text, wrong):
    assert checks.wrong_sums(text) == wrong


def test_repeats_and_refusals():
    assert checks.repeated_share("the same thing again " * 9) > 0.8
    assert checks.repeated_share("each word of this is another one than all of those before") == 0
    assert checks.repeated_share("ha ha ha") == 0  # too short to say
    for text in (
        "I'm sorry, but I cannot help with that.",
        "As an AI language model, I have no view",
        "I am unable to say more",
    ):
        assert checks.is_refusal(text), text
    for text in ("I'm sorry for the delay; your parcel left today.", "You cannot park here", "Paris"):
        assert not checks.is_refusal(text), text


@pytest.mark.parametrize(
    ("text", "incomplete", "fault"),
    [
        ("Paris", False, ""),
        ("Paris", True, "cut off"),
        (" ", False, "empty"),
        ("As an AI I cannot tell", False, "refusal"),
        ("A: 20:00 " * 12, False, "circles"),
        ("1 + 1 = 3", False, "calculation"),
    ],
)
def test_what_no_answer_may_be(text, incomplete, fault):
    found = checks.fault(text, incomplete=incomplete)
    assert bool(found) == bool(fault)
    assert fault in found


def test_shapes():
    assert [checks.shape(text) for text in ("12:30 pm", "7:5 am", "Ann", "May 5th", "")] == [
        "9:9 a",
        "9:9 a",
        "A",
        "A 9a",
        "",
    ]
