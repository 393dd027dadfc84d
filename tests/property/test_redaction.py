import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import CannotRedact
from agent.escalation.redaction import redact, restore

PERSONAL = st.sampled_from(
    [
        "bob@example.org",
        "DE89 3704 0044 0532 0130 00",
        "4111 1111 1111 1111",
        "+49 170 1234567",
        "10.1.2.3",
        "hf_" + "a1B2" * 8,
    ]
)
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="0123456789"), max_size=30)
TEXTS = st.lists(st.one_of(WORDS, PERSONAL, st.just("EMAIL_1"), st.just("[phone 2]")), max_size=6).map(" ; ".join)


def chat(*texts):
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text} for text in texts]}).encode()


def reply(text):
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


def content(body):
    return json.loads(body)["choices"][0]["message"]["content"]


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_what_is_echoed_comes_back_as_it_was_typed(texts):
    found = redact(chat(*texts))
    sent = [message["content"] for message in json.loads(found.body)["messages"]]
    for text, echoed in zip(texts, sent, strict=True):
        back = content(restore(reply(echoed), found.values))
        # Two ways to write one value come back as the first of them; here each is always written alike.
        assert back == text
    for value in ("bob@example.org", "4111 1111", "0532 0130", "170 1234567", "10.1.2.3", "hf_a1B2"):
        assert value.encode() not in found.body


@given(TEXTS)
def test_the_same_body_gives_the_same_names(text):
    assert redact(chat(text)) == redact(chat(text))


@given(TEXTS)
def test_what_was_pseudonymised_once_has_nothing_left(text):
    once = redact(chat(text))
    assert redact(once.body).values == {}


def test_a_name_is_known_however_a_model_writes_it():
    found = redact(chat("mail bob@example.org, ring +49 170 1234567"))
    told = "**Email_1**, [EMAIL_1], `email-1`, Email 1 and PHONE_1; EMAIL_10 stays"
    back = content(restore(reply(told), found.values))
    assert back == (
        "**bob@example.org**, bob@example.org, `bob@example.org`, bob@example.org and +49 170 1234567; EMAIL_10 stays"
    )


def test_what_the_user_typed_like_a_name_stays_what_he_typed():
    found = redact(chat("EMAIL_1 is a column; mail bob@example.org"))
    assert "EMAIL_2" in found.values
    assert content(restore(reply("EMAIL_1 holds [EMAIL_2]"), found.values)) == "EMAIL_1 holds bob@example.org"


def test_values_go_into_json_as_json():
    found = redact(chat('ring "+49 170 1234567"'), terms=['a "quoted" term'])
    found = redact(chat('use a "quoted" term'), terms=['a "quoted" term'])
    back = content(restore(reply('{"said": "[TERM_1]"}'), found.values))
    assert json.loads(back) == {"said": 'a "quoted" term'}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"messages": [{"content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}]}, "an image"),
        ({"messages": [{"content": [{"type": "input_audio", "input_audio": {}}]}]}, "a file or sound"),
        ({"tools": [{"function": {"parameters": {"properties": {"bob@example.org": {}}}}}]}, "name of a field"),
        ({"tools": [{"function": {"parameters": {"enum": [4111111111111111]}}}]}, "CARD"),
    ],
)
def test_what_cannot_be_searched_or_replaced_does_not_leave(body, said):
    with pytest.raises(CannotRedact, match=said) as caught:
        redact(json.dumps(body).encode())
    assert "bob" not in str(caught.value)


@pytest.mark.parametrize("body", [b"", b"\xff", b"[" * 100_000, b"3"])
def test_a_reply_that_is_no_json_stays_as_it_is(body):
    assert restore(body, {"EMAIL_1": "x"}) == body


def test_what_stands_beside_a_file_or_an_image_is_searched_and_the_bytes_are_not():
    data = "data:application/pdf;base64," + "4111111111111111" * 4
    parts = [
        {"type": "file", "file": {"filename": "bob@example.org.pdf", "file_data": data}},
        {"type": "input_audio", "input_audio": {"data": "QUJD" * 30, "format": "wav"}, "caption": "call 10.1.2.3"},
    ]
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": parts}]}).encode()
    found = redact(body, media=True)
    file, audio = json.loads(found.body)["messages"][0]["content"]
    assert file == {"type": "file", "file": {"filename": "[EMAIL_1]", "file_data": data}}
    assert audio == parts[1] | {"caption": "call [IP_1]"}
    assert found.kinds == {"EMAIL": 1, "IP": 1}
    with pytest.raises(CannotRedact, match="file or sound"):
        redact(body)
