"""What a target is asked, and how its verdict is read."""

import json

import msgspec
import pytest
from fakes.escalation_values import record, row

from agent.errors import BodyGone
from agent.escalation.handoff import CONTINUE, REFINE, VERDICT_TOKENS, VERIFY, chat_body, read_label, read_verdict
from agent.types import Failure, FailureKind, Handoff, Message, RequestKind, Sampling


def body(handoff=Handoff.FRESH, **options):
    return json.loads(chat_body(record(**options), row(handoff), "big-model"))


def test_fresh_sends_the_request_and_nothing_else():
    assert body() == {
        "model": "big-model",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Capital of France?"},
        ],
        "temperature": 0.0,
    }


def test_sampling_goes_along():
    sampling = Sampling(
        temperature=0.7, top_p=0.9, seed=4, max_tokens=50, stop=("\n\n",), logprobs=True, top_logprobs=3
    )
    sent = body(sampling=sampling)
    del sent["messages"], sent["model"]
    assert sent == {"temperature": 0.7, "top_p": 0.9, "seed": 4, "max_tokens": 50, "stop": ["\n\n"]}


def test_the_bytes_are_the_same_each_time():
    assert chat_body(record(), row(), "m") == chat_body(record(), row(), "m")


def test_refine_takes_the_draft_along():
    assert body(Handoff.REFINE)["messages"][2:] == [
        {"role": "assistant", "content": "Lyon"},
        {"role": "user", "content": REFINE},
    ]


def test_verify_takes_the_draft_along_and_leaves_room_for_the_verdict():
    sent = body(Handoff.VERIFY, sampling=Sampling(max_tokens=10, stop=("\n",)))
    assert sent["messages"][2:] == [{"role": "assistant", "content": "Lyon"}, {"role": "user", "content": VERIFY}]
    assert sent["max_tokens"] == 10 + VERDICT_TOKENS
    assert "stop" not in sent


@pytest.mark.parametrize("handoff", [Handoff.REFINE, Handoff.VERIFY])
@pytest.mark.parametrize(
    "no_draft",
    [{"draft": None}, {"draft": "  "}, {"draft": "half an ans", "failure": Failure(FailureKind.CRASH, "gone")}],
)
def test_without_a_whole_draft_the_request_goes_fresh(handoff, no_draft):
    assert body(handoff, **no_draft) == body()


def test_a_body_past_its_retention_is_gone():
    with pytest.raises(BodyGone, match="r1"):
        chat_body(record(request=False), row(), "m")


@pytest.mark.parametrize("reply", ["RIGHT", "Right.", "  **RIGHT**\n", "right\nIndeed it is."])
def test_right_keeps_the_draft(reply):
    judged = read_verdict(reply, record())
    assert (judged.verdict, judged.text) == ("right", "Lyon")


@pytest.mark.parametrize("reply", ["WRONG\nParis", "**Wrong**:\n\n Paris \n"])
def test_wrong_brings_the_targets_own_answer(reply):
    judged = read_verdict(reply, record())
    assert (judged.verdict, judged.text) == ("wrong", "Paris")


def test_stop_strings_apply_to_the_answer_after_the_verdict():
    judged = read_verdict("WRONG\nParis.\nEND and more", record(sampling=Sampling(stop=("END", "zzz"))))
    assert judged.text == "Paris."


@pytest.mark.parametrize("reply", ["WRONG", "WRONG\n  \n", "Paris", "", "It is RIGHT", "RIGHTLY so"])
def test_no_verdict_is_guessed(reply):
    assert read_verdict(reply, record()) is None


LABELS = ("Card lost", "refund", "*odd*")


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("refund", "refund"),
        ("  **Refund**.\n", "refund"),
        ('"CARD LOST"', "Card lost"),
        ("odd", "*odd*"),
        ("refund or card lost", None),
        ("The label is refund", None),
        ("", None),
        ("refunds", None),
    ],
)
def test_a_reply_names_exactly_one_label_or_none(reply, label):
    assert read_label(reply, LABELS) == label


def test_a_choice_asks_for_one_of_the_labels_in_every_handoff():
    for handoff in Handoff:
        told = record()
        told = msgspec.structs.replace(
            told, request=msgspec.structs.replace(told.request, kind=RequestKind.CLASSIFY, labels=LABELS)
        )
        last = json.loads(chat_body(told, row(handoff), "m"))["messages"][-1]
        assert last["role"] == "user"
        assert all(label in last["content"] for label in LABELS)


def test_a_completion_is_asked_for_as_a_chat():
    told = record(draft=None)
    asked = msgspec.structs.replace(told.request, kind=RequestKind.COMPLETION, messages=(Message("user", "Once"),))
    sent = json.loads(chat_body(msgspec.structs.replace(told, request=asked), row(), "m"))["messages"]
    assert sent == [{"role": "system", "content": CONTINUE}, {"role": "user", "content": "Once"}]
