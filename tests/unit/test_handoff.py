"""What a target is asked, and how its verdict is read."""

import json

import msgspec
import pytest
from fakes.escalation_values import record, row

from agent.egress_settings import ImageConsent
from agent.errors import BodyGone
from agent.escalation.consent import forbidden, holds_media, images_need_person
from agent.escalation.handoff import (
    CONTINUE,
    ENUM,
    REFINE,
    VERDICT_TOKENS,
    VERIFY,
    chat_body,
    read_label,
    read_verdict,
    with_last_text,
)
from agent.records import HoldReason
from agent.settings import TargetSettings
from agent.structure import FormatKind, OutputFormat, ToolCall, ToolChoice, ToolFunction, Tools
from agent.types import EgressPolicy, Failure, FailureKind, Handoff, Message, RequestKind, Sampling, Thinking


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


def test_of_the_other_sampling_only_what_the_openai_api_knows_goes_along():
    sampling = Sampling(
        top_k=4,
        min_p=0.1,
        repetition_penalty=1.2,
        logit_bias=((3, 1.0),),
        n=2,
        frequency_penalty=0.5,
        presence_penalty=1,
    )
    sent = body(sampling=sampling)
    del sent["messages"], sent["model"]
    assert sent == {"temperature": 0.0, "frequency_penalty": 0.5, "presence_penalty": 1}


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


SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}}
AS_SCHEMA = OutputFormat(kind=FormatKind.JSON_SCHEMA, source=json.dumps(SCHEMA), name="thing", strict=True)
TOOLS = Tools(
    functions=(ToolFunction(name="now"), ToolFunction(name="weather", description="of a city", parameters="{}")),
    choice=ToolChoice.REQUIRED,
    only="weather",
    parallel=False,
)


def test_a_schema_goes_along_as_it_came():
    sent = body(response_format=AS_SCHEMA)["response_format"]
    assert sent == {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True}}
    assert list(sent["json_schema"]["schema"]["properties"]) == ["b", "a"]
    assert body(response_format=OutputFormat(kind=FormatKind.JSON_OBJECT))["response_format"] == {"type": "json_object"}


def test_what_the_openai_api_cannot_say_is_said_in_words():
    sent = body(response_format=OutputFormat(kind=FormatKind.ENUM, source='["yes", "no"]'))
    assert "response_format" not in sent
    assert sent["messages"][-1] == {"role": "system", "content": ENUM + '["yes", "no"]'}


def test_tools_and_their_history_go_along():
    call = ToolCall(id="c1", name="now", arguments="{}")
    history = (
        Message("user", "When?"),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "noon", tool_call_id="c1"),
    )
    sent = body(tools=TOOLS, messages=history)
    assert sent["tools"] == [
        {"type": "function", "function": {"name": "now"}},
        {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": {}}},
    ]
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert sent["parallel_tool_calls"] is False
    assert sent["messages"] == [
        {"role": "user", "content": "When?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "noon", "tool_call_id": "c1"},
    ]


def test_a_draft_that_a_handoff_would_break_stays_here():
    assert body(Handoff.REFINE, tools=TOOLS) == body(tools=TOOLS)
    assert body(Handoff.VERIFY, response_format=AS_SCHEMA) == body(response_format=AS_SCHEMA)
    assert body(Handoff.REFINE, response_format=AS_SCHEMA)["messages"][-1]["content"] == REFINE


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


def test_an_effort_goes_along_and_thoughts_never_do():
    sent = body(thinking=Thinking(enabled=True, budget_tokens=512, effort="low"))
    assert sent["reasoning_effort"] == "low"
    asked = record(draft="Paris")
    thoughtful = msgspec.structs.replace(asked.generation, thoughts="secret musings")
    left = chat_body(msgspec.structs.replace(asked, generation=thoughtful), row(Handoff.REFINE), "big-model")
    assert b"Paris" in left
    assert b"musings" not in left
    assert "thinking_budget_tokens" not in body(thinking=Thinking(enabled=True, budget_tokens=9))


IMAGE = json.dumps([{"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}])
SHOWN = (Message("user", "", parts=IMAGE), Message("user", "and this?", parts=IMAGE), Message("assistant", "a cat"))


def test_what_a_person_writes_in_place_of_the_last_text_takes_no_image_along():
    said = with_last_text(record(messages=(*SHOWN, Message("user", "which?"))), "which one?")
    assert said == (Message("user", "and this?"), Message("assistant", "a cat"), Message("user", "which one?"))


def test_images_that_a_person_puts_there_need_the_same_consent_as_those_of_the_caller():
    given = {"name": "big", "base_url": "https://x.test/v1", "model": "m", "egress": EgressPolicy.APPROVE}
    target = TargetSettings(**given, images=ImageConsent.NEVER)
    own = msgspec.structs.replace(record(), edited=SHOWN)
    assert holds_media(own)
    assert "image" in forbidden(own, row(), target)
    asks = msgspec.structs.replace(target, images=ImageConsent.APPROVE)
    assert images_need_person(own, row(), asks) is HoldReason.HOLDS_IMAGES
    without = msgspec.structs.replace(record(messages=SHOWN), edited=(Message("user", "text alone"),))
    assert forbidden(without, row(), target) is None
