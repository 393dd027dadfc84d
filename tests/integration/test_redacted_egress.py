"""What leaves under each policy, and what its owner reads: real storage, a real target on loopback."""

import base64
import json
import struct

import pytest
from fakes.cloud import ok
from fakes.dispatching import ended, now_ms, queue_row, row_until, running, target
from fakes.storage_values import DAY, queued

from agent.egress_settings import ImageConsent
from agent.errors import WrongState
from agent.records import EscalationState, RequestState
from agent.text_settings import RedactionSettings
from agent.types import EgressPolicy, Handoff, Message

TEXT = "Write to bob@example.org about Bluebird; my IBAN is DE89 3704 0044 0532 0130 00."
PERSONAL = (b"bob@example.org", b"0532 0130")
REPLY = "I wrote to [EMAIL_1] and used **IBAN_1**."
RESTORED = "I wrote to bob@example.org and used **DE89 3704 0044 0532 0130 00**."


@pytest.fixture
async def cloud(cloud):
    cloud.default = ok(REPLY)
    return cloud


def sent(cloud):
    return b"".join(chat.body for chat in cloud.chats)


async def test_redact_goes_at_once_without_the_values_and_comes_back_with_them(storage, cloud):
    record = await queue_row(storage, cloud, TEXT, decision=queued(egress=EgressPolicy.REDACT))
    assert (await storage.outbox.get(record.id)).state is EscalationState.PENDING
    async with running(storage, target(cloud, egress=EgressPolicy.REDACT)):
        late = await ended(storage, record)
    assert (late.state, late.cloud_answer.text) == (RequestState.RESOLVED, RESTORED)
    assert not any(value in sent(cloud) for value in PERSONAL)
    assert b"[EMAIL_1] about Bluebird" in sent(cloud)
    (line,) = await storage.egress_log.list()
    assert (line.policy, line.redactions) == ("redact", {"EMAIL": 1, "IBAN": 1})
    assert await storage.egress_log.verify() is None
    assert late.request.messages[-1].content == TEXT


async def test_approve_waits_for_a_person_and_goes_without_the_values(storage, cloud):
    record = await queue_row(storage, cloud, TEXT, decision=queued(egress=EgressPolicy.APPROVE))
    assert (await storage.outbox.get(record.id)).state is EscalationState.AWAITING_APPROVAL
    fingerprint = target(cloud).fingerprint
    await storage.outbox.release(None, target="cloud", fingerprint=fingerprint, now_ms=now_ms())
    async with running(storage, target(cloud)):
        late = await ended(storage, record)
    assert late.cloud_answer.text == RESTORED
    assert not any(value in sent(cloud) for value in PERSONAL)


@pytest.mark.parametrize(
    ("accepted", "asked", "now", "as_it_is"),
    [
        (EgressPolicy.ALLOW, None, EgressPolicy.ALLOW, True),
        (EgressPolicy.ALLOW, None, EgressPolicy.REDACT, False),
        (EgressPolicy.REDACT, None, EgressPolicy.ALLOW, False),
        (EgressPolicy.ALLOW, EgressPolicy.REDACT, EgressPolicy.ALLOW, False),
        (EgressPolicy.ALLOW, EgressPolicy.ALLOW, EgressPolicy.ALLOW, True),
    ],
)
async def test_the_strictest_of_row_request_and_target_holds_when_it_is_sent(
    storage, cloud, accepted, asked, now, as_it_is
):
    record = await queue_row(storage, cloud, TEXT, decision=queued(egress=accepted), egress=asked)
    async with running(storage, target(cloud, egress=now)):
        await ended(storage, record)
    assert all((value in sent(cloud)) is as_it_is for value in PERSONAL)


async def test_a_target_that_wants_a_release_now_holds_what_was_accepted_under_redact(storage, cloud):
    record = await queue_row(storage, cloud, TEXT, decision=queued(egress=EgressPolicy.REDACT))
    async with running(storage, target(cloud, egress=EgressPolicy.APPROVE)):
        row = await storage.outbox.get(record.id)
    assert (row.state, row.reason) == (EscalationState.AWAITING_APPROVAL, "policy_tightened")
    assert cloud.chats == []


async def test_new_words_of_the_user_hold_from_the_reload_on(storage, cloud):
    async with running(storage, target(cloud, egress=EgressPolicy.REDACT)) as dispatcher:
        for terms, told in (((), b"Bluebird"), (("bluebird",), b"[TERM_1]")):
            changed = [target(cloud, egress=EgressPolicy.REDACT)]
            await dispatcher.replace_targets(changed, RedactionSettings(terms=terms))
            record = await queue_row(storage, cloud, TEXT, decision=queued(egress=EgressPolicy.REDACT))
            dispatcher.wake()
            await ended(storage, record)
            assert told in cloud.chats[-1].body
    assert b"Bluebird" not in cloud.chats[-1].body


async def test_what_cannot_be_pseudonymised_is_not_sent_and_says_why(storage, cloud):
    parts = '[{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]'
    messages = (Message("user", TEXT, parts=parts),)
    record = await queue_row(storage, cloud, decision=queued(egress=EgressPolicy.REDACT), messages=messages)
    async with running(storage, target(cloud, egress=EgressPolicy.REDACT, images=ImageConsent.ALLOW)):
        late = await ended(storage, record)
    assert late.state is RequestState.UNRESOLVED
    assert late.escalation.last_error == "not sent: it holds an image, in which nothing can be replaced"
    assert cloud.chats == []
    assert (await storage.egress_log.totals(0)).rows == 0


@pytest.mark.parametrize("consent", ImageConsent)
async def test_an_image_needs_a_consent_of_its_own_and_loses_its_metadata(storage, cloud, consent):
    chunks = ((b"IHDR", bytes(13)), (b"eXIf", b"GPS: here"), (b"IEND", b""))
    photo = b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(d)) + name + d + bytes(4) for name, d in chunks)
    url = "data:image/png;base64," + base64.b64encode(photo).decode()
    messages = (Message("user", "", parts=json.dumps([{"type": "image_url", "image_url": {"url": url}}])),)
    record = await queue_row(storage, cloud, decision=queued(), messages=messages)
    async with running(storage, target(cloud, images=consent)):
        if consent is ImageConsent.APPROVE:
            row = await row_until(storage, record, lambda row: row.state is EscalationState.AWAITING_APPROVAL)
            assert row.reason == "holds_images"
            assert cloud.chats == []
            return
        late = await ended(storage, record)
    assert late.state is (RequestState.RESOLVED if consent is ImageConsent.ALLOW else RequestState.UNRESOLVED)
    assert len(cloud.chats) == (consent is ImageConsent.ALLOW)
    for chat in cloud.chats:
        sent_url = json.loads(chat.body)["messages"][0]["content"][0]["image_url"]["url"]
        assert b"GPS" not in base64.b64decode(sent_url.partition(",")[2])


async def test_the_log_tells_the_bytes_that_left_not_those_that_were_typed(storage, cloud):
    record = await queue_row(storage, cloud, TEXT, decision=queued(egress=EgressPolicy.REDACT))
    async with running(storage, target(cloud, egress=EgressPolicy.REDACT)):
        await ended(storage, record)
    (row,) = await storage.egress_log.list()
    assert row.bytes == len(cloud.chats[0].body)


async def test_what_a_person_edits_is_all_that_leaves_and_is_searched_again(storage, cloud):
    record = await queue_row(storage, cloud, TEXT, decision=queued(egress=EgressPolicy.APPROVE, handoff=Handoff.REFINE))
    edited = await storage.outbox.edit(record.id, (Message("user", "Write to eve@example.com instead."),))
    assert (edited.edited, edited.state) == (True, EscalationState.AWAITING_APPROVAL)
    await storage.outbox.release(None, target="cloud", fingerprint=target(cloud).fingerprint, now_ms=now_ms())
    async with running(storage, target(cloud)):
        late = await ended(storage, record)
    (chat,) = cloud.chats
    assert json.loads(chat.body)["messages"] == [{"role": "user", "content": "Write to [EMAIL_1] instead."}]
    assert late.cloud_answer.text == REPLY.replace("[EMAIL_1]", "eve@example.com")
    assert late.request.messages[-1].content == TEXT  # the owner's request is the owner's
    with pytest.raises(WrongState, match="only what waits for a person"):
        await storage.outbox.edit(record.id, (Message("user", "again"),))
    await storage.outbox.purge(now_ms=now_ms(), unfetched=True)


async def test_what_a_person_wrote_goes_with_the_texts_of_the_request(storage, cloud):
    record = await queue_row(storage, cloud, TEXT, decision=queued(egress=EgressPolicy.APPROVE))
    await storage.outbox.edit(record.id, (Message("user", "NEEDLE"),))
    await storage.outbox.cancel(record.id, now_ms=now_ms())
    await storage.maintain(now_ms() + 90 * DAY)
    found = await storage.db.read(
        lambda c: c.execute("SELECT count(*) FROM escalations WHERE edited IS NOT NULL").fetchone()
    )
    assert found[0] == 0
