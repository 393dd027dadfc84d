"""Whose rows are is known by a tag, and what is kept of a person is found by it in every table."""

import json

import msgspec
import pytest
from fakes import storage_values as values
from fakes.journal_values import LATE, ask, resolve
from fakes.storage_values import DAY, NOW

from agent.errors import BodyGone, LeaseLost, NotFound
from agent.identifiers import uuid7
from agent.records import Accepted, Feedback, FeedbackOrigin, Said, Verdict
from agent.response_call import ResponseCall
from agent.storage import keys, subjects
from agent.storage.batch_store import Batch, BatchBody, Line
from agent.storage.connection import DATABASE_NAME
from agent.storage.salvage import salvage
from agent.task_memory import StoredExample

ANN = "ann@example.org"


@pytest.fixture
async def storage(tmp_path):
    opened = await values.opened(tmp_path)
    yield opened
    await opened.close()


async def tags(storage):
    found = "SELECT kind, owner FROM subject_tags ORDER BY kind, owner"
    return [tuple(row) for row in await storage.db.read(lambda connection: connection.execute(found).fetchall())]


def feedback(request_id, text="what Ann asked"):
    said = Said(input=text, local_answer="a", right_answer="b")
    return Feedback(
        id=f"f-{request_id}", request_id=request_id, task="mail", origin=FeedbackOrigin.CALLER,
        verdict=Verdict.CORRECTED, right=False, served=True, propensity=None, created_at_ms=NOW, said=said,
    )  # fmt: skip


@pytest.mark.parametrize("fields", [{"user": ANN}, {"safety_identifier": ANN}, {"metadata": {"subject": ANN}}])
async def test_each_way_to_name_a_person(storage, fields):
    theirs, other = await ask(storage, **fields), await ask(storage, user="bob", metadata={"note": ANN})
    erased = await storage.subjects.erase(ANN, now_ms=NOW)
    assert (erased.requests, erased.answers) == (1, 1)
    assert await storage.journal.get(theirs.id) is None
    assert (await storage.journal.get(other.id)).request is not None
    assert await tags(storage) == [("request", other.id)]


async def test_the_name_itself_is_in_no_index(storage):
    await ask(storage, user=ANN)
    found = await storage.db.read(lambda c: c.execute("SELECT * FROM subject_tags").fetchone())
    assert ANN.encode() not in b"".join(str(part).encode() if isinstance(part, str) else part for part in found)
    other = subjects.tag_of(b"another database's key", ANN)
    assert found["tag"] not in {other, ANN.encode()}


async def test_counting_changes_nothing(storage):
    await ask(storage, values.queued(), user=ANN)
    row = await resolve(storage)
    counted = await storage.subjects.count(ANN)
    assert (counted.requests, counted.answers, counted.escalations, counted.attempts) == (1, 2, 1, 1)
    assert (await storage.journal.get(row.id)).cloud_answer == LATE
    assert await storage.subjects.count("nobody") == type(counted)()


async def test_what_is_under_way_at_a_target_is_cancelled_logged_and_its_answer_not_taken(storage):
    record = await ask(storage, values.queued(), user=ANN)
    row, _ = await storage.outbox.claim("cloud", now_ms=NOW, lease_ms=60_000)
    await storage.outbox.begin_send(row, body_sha256="ab", body_bytes=12, now_ms=NOW)
    erased = await storage.subjects.erase(ANN, now_ms=NOW)
    assert (erased.escalations, erased.in_flight, erased.attempts) == (1, 1, 1)
    with pytest.raises(LeaseLost):
        await storage.outbox.succeed(row, LATE, now_ms=NOW)
    assert await storage.journal.get(record.id) is None
    (line,) = await storage.egress_log.list()
    assert (line.request_id, line.outcome, line.bytes) == (record.id, "unknown", 12)
    assert await storage.egress_log.verify() is None
    assert (await storage.outbox.counts())["leased"] == {"rows": 0, "bytes": 0}


async def test_a_row_that_is_claimed_does_not_leave_any_more(storage):
    await ask(storage, values.queued(), user=ANN)
    row, _ = await storage.outbox.claim("cloud", now_ms=NOW, lease_ms=60_000)
    await storage.subjects.erase(ANN, now_ms=NOW)
    with pytest.raises(LeaseLost):
        await storage.outbox.begin_send(row, body_sha256="ab", body_bytes=12, now_ms=NOW)
    assert await storage.egress_log.list() == []


async def test_what_runs_meanwhile_is_not_kept_and_what_comes_later_is(storage):
    await storage.journal.open(running := values.request(user=ANN), now_ms=NOW)
    not_opened = values.request("accepted before", user=ANN)
    assert await storage.subjects.running(ANN) == [running.id]
    assert (await storage.subjects.erase(ANN, now_ms=NOW)).running == 1
    with pytest.raises(NotFound, match="erased"):
        await storage.journal.settle(running, values.generation(), None, values.ANSWERED, now_ms=NOW)
    with pytest.raises(BodyGone, match="erased"):
        await storage.journal.record(not_opened, Accepted(), values.generation(), None, values.ANSWERED, now_ms=NOW)
    assert await storage.journal.list() == []
    later = values.request(user=ANN, now_ms=NOW + 1)
    assert await storage.journal.open(later, now_ms=NOW + 1) is None
    await storage.maintain(NOW + DAY)
    assert await storage.db.read(lambda c: c.execute("SELECT count(*) FROM erasures").fetchone()[0]) == 0


async def test_a_clock_that_was_set_back_does_not_refuse_a_person_for_long(storage):
    await storage.subjects.erase(ANN, now_ms=NOW)
    await storage.maintain(NOW - DAY)
    assert await storage.journal.open(values.request(user=ANN, now_ms=NOW - DAY), now_ms=NOW - DAY) is None


async def test_the_rest_of_a_conversation_goes_with_its_beginning(storage):
    first = await ask(storage, user=ANN, response=ResponseCall(input="[]"))
    second = await ask(storage, response=ResponseCall(input="[]", previous_id=first.id))
    await ask(storage, response=ResponseCall(input="[]", previous_id="unknown"))
    assert (await storage.subjects.erase(ANN, now_ms=NOW)).requests == 2
    assert await storage.journal.get(second.id) is None
    assert len(await storage.journal.list()) == 1


async def test_feedback_is_found_when_its_request_has_gone(storage):
    record = await ask(storage, user=ANN)
    await storage.feedback.put(feedback(record.id))
    await storage.maintain(NOW + 90 * DAY)
    assert await storage.journal.get(record.id) is None
    erased = await storage.subjects.erase(ANN, now_ms=NOW + 91 * DAY)
    assert (erased.requests, erased.feedback) == (0, 1)
    assert await storage.feedback.list() == []
    assert await tags(storage) == []


async def test_a_tag_goes_with_the_last_that_it_stands_for(storage):
    record = await ask(storage, user=ANN)
    await storage.maintain(NOW + 2 * DAY)  # its texts
    assert await tags(storage) == [("request", record.id)]
    await storage.maintain(NOW + 90 * DAY)
    assert await tags(storage) == []


async def test_examples_that_were_made_of_their_texts_go_and_what_showed_one_is_untaught(storage):
    await ask(storage, text="what Ann asked", user=ANN)
    await ask(storage, text="what Bob asked", user="bob")
    examples = [StoredExample("what Ann asked", "spam"), StoredExample("what Bob asked", "ham"), StoredExample("x")]

    async def keep(task, use, found):
        body, inputs = msgspec.msgpack.encode(found), [one.input for one in found]
        await storage.tasks.put_examples(task, use, body, inputs=inputs, now_ms=NOW)

    await keep("mail", "teach", examples)
    await keep("mail", "calibrate", examples[:1])
    await keep("other", "teach", examples[1:])
    shown = msgspec.msgpack.encode({"demonstrations": {"inputs": ["what Ann asked"]}})
    await storage.tasks.put_appraiser("mail", shown, now_ms=NOW)
    await storage.tasks.put_appraiser("other", b"\x80", now_ms=NOW)
    await storage.tasks.put_calibration("mail", "c1", b"made with it", now_ms=NOW)
    await storage.maintain(NOW + 90 * DAY)  # the requests are gone; the examples are still known
    erased = await storage.subjects.erase(ANN, now_ms=NOW)
    assert (erased.examples, erased.tasks, erased.untaught) == (2, ("mail",), ("mail",))
    left = msgspec.msgpack.decode(await storage.tasks.examples("mail", "teach"), type=list[StoredExample])
    assert left == examples[1:]
    assert await storage.tasks.examples("mail", "calibrate") == b""
    learned = await storage.tasks.all()
    assert (learned.appraisers, learned.calibrations) == ((b"\x80",), ())
    assert (await storage.subjects.count("bob")).examples == 2


class TestBatches:
    def line(self, number, said, **fields):
        return Line(number, f"id-{number}", None, json.dumps({"messages": [], "said": said, **fields}).encode())

    async def batch(self, storage, lines, **fields):
        body = BatchBody(input_file_id="file-1", endpoint="/v1/chat/completions", completion_window="24h", **fields)
        made = Batch(id="batch_1", status="validating", body=body, created_at_ms=NOW, expires_at_ms=NOW + DAY)
        await storage.batches.create(made, key=None, sha256="x")
        await storage.batches.add_lines("batch_1", lines)
        await storage.batches.begin("batch_1", len(lines), now_ms=NOW)
        return made

    async def test_their_lines_go_answered_or_not(self, storage):
        lines = [self.line(n, "text", **({"user": ANN} if n < 3 else {})) for n in range(1, 5)]
        made = await self.batch(storage, lines)
        await storage.batches.answer("batch_1", 1, 200, b'{"answer": "to Ann"}')
        await storage.batches.answer("batch_1", 4, 200, b'{"answer": "to Bob"}')
        erased = await storage.subjects.erase(ANN, now_ms=NOW)
        assert erased.batch_lines == 2
        assert [line.number for line in await storage.batches.new_lines("batch_1", 0, 10)] == [3]
        await storage.batches.answer("batch_1", 3, 200, b"{}")
        await storage.batches.end(made, "completed", now_ms=NOW, keep_s=60)
        ended = await storage.batches.get("batch_1")
        assert (ended.total, ended.completed, ended.failed) == (4, 3, 1)
        file = await storage.files.get(ended.output_file_id)
        content = b"".join([piece async for piece in storage.files.content(file)])
        assert content == b'{}\n{"answer": "to Bob"}\n'
        assert file.bytes == len(content)
        assert (await storage.files.get(ended.error_file_id)).bytes == 0

    async def test_an_output_that_is_there_already_becomes_shorter(self, storage):
        made = await self.batch(storage, [self.line(1, "text", user=ANN), self.line(2, "text")])
        for number, answer in ((1, b"to Ann"), (2, b"to Bob")):
            await storage.batches.answer("batch_1", number, 200, answer)
        await storage.batches.end(made, "completed", now_ms=NOW, keep_s=60)
        await storage.subjects.erase(ANN, now_ms=NOW)
        file = await storage.files.get((await storage.batches.get("batch_1")).output_file_id)
        assert [piece async for piece in storage.files.content(file)] == [b"to Bob\n"]
        assert file.bytes == 7

    async def test_a_batch_may_be_theirs_as_a_whole(self, storage):
        await self.batch(storage, [self.line(1, "text"), self.line(2, "text")], metadata={"subject": ANN})
        assert (await storage.subjects.erase(ANN, now_ms=NOW)).batch_lines == 2
        found = await storage.batches.get("batch_1")
        assert (found.body.metadata, found.failed) == (None, 2)


async def stored_file(storage, content, piece=64):
    file_id = await storage.files.begin(now_ms=NOW)
    for number, start in enumerate(range(0, len(content), piece)):
        await storage.files.append(file_id, number, content[start : start + piece])
    return await storage.files.ready(file_id, filename="in", sha256="s", key="k", keep_s=None, now_ms=NOW)


async def test_their_lines_in_an_uploaded_file_become_blank_and_nothing_else_changes(storage):
    bodies = [{"user": ANN}, {"user": "bob"}, {"metadata": {"subject": ANN}, "long": "x" * 200}, {"user": [ANN]}, ANN]
    lines = [json.dumps({"custom_id": str(n), "body": body}).encode() for n, body in enumerate(bodies)]
    lines += [
        b"no json, of " + ANN.encode(),
        b"",
        b"\xff\xfe",
        json.dumps({"body": {"safety_identifier": ANN}}).encode(),
    ]
    file = await stored_file(storage, b"\n".join(lines))
    assert (await storage.subjects.erase(ANN, now_ms=NOW)).file_lines == 3
    content = b"".join([piece async for piece in storage.files.content(file)])
    wanted = [b" " * len(line) if n in {0, 2, 8} else line for n, line in enumerate(lines)]
    assert content.split(b"\n") == wanted


async def test_tags_that_were_lost_with_a_damaged_page_come_back_when_it_is_salvaged(tmp_path):
    data = values.prepared_dir(tmp_path)
    storage = await values.open_storage(data, values.QUEUE, values.KEEP, now_ms=NOW)
    await ask(storage, user=ANN)
    kept = await ask(storage, user="bob")
    await storage.close()
    connection = values.raw_connection(data)
    connection.execute("DELETE FROM subject_tags WHERE owner <> ?", (kept.id,))
    connection.execute("DELETE FROM secrets WHERE name = 'subject_tags'")
    connection.close()
    salvage(data, now_ms=NOW)
    storage = await values.open_storage(data, values.QUEUE, values.KEEP, now_ms=NOW)
    for name in (ANN, "bob"):
        assert (await storage.subjects.erase(name, now_ms=NOW)).requests == 1
    assert await storage.journal.list() == []
    await storage.close()


async def test_what_an_earlier_schema_stored_is_found_too(tmp_path):
    from agent.storage.migrations import migrate

    data = values.prepared_dir(tmp_path)
    storage = await values.open_storage(data, values.QUEUE, values.KEEP, now_ms=NOW)
    first = await ask(storage, user=ANN, text="what Ann asked", response=ResponseCall(input="[]"))
    second = await ask(storage, id=uuid7(NOW + 1), response=ResponseCall(input="[]", previous_id=first.id))
    line = await ask(storage, metadata={"subject": ANN}, idempotency_key="§batch_1:2")
    other = await ask(storage, user="bob")
    body = msgspec.msgpack.encode([StoredExample("what Ann asked", "spam")])
    await storage.tasks.put_examples("mail", "teach", body, inputs=[], now_ms=NOW)
    await TestBatches().batch(storage, [TestBatches().line(1, "text", user=ANN), TestBatches().line(2, "text")])
    await storage.close()
    connection = values.raw_connection(data)
    for name in ("requests", "feedback", "batch_lines", "task_examples"):
        connection.execute(f"DROP TRIGGER {name}_untag")
    for statement in (
        "DROP TABLE subject_tags", "DROP TABLE erasures", "DELETE FROM secrets WHERE name = 'subject_tags'",
        "ALTER TABLE calibrations DROP COLUMN broken_at_ms", "PRAGMA user_version = 13",
    ):  # fmt: skip
        connection.execute(statement)
    connection.close()
    assert migrate(data / DATABASE_NAME, keys.load(data, {}).material)[0] == 14
    storage = await values.open_storage(data, values.QUEUE, values.KEEP, now_ms=NOW)
    assert await tags(storage) == [
        ("example", "mail:teach"), ("line", "batch_1:1"), ("line", "batch_1:2"),
        *(("request", one) for one in sorted((first.id, second.id, line.id, other.id))),
    ]  # fmt: skip
    erased = await storage.subjects.erase(ANN, now_ms=NOW)
    assert (erased.requests, erased.batch_lines, erased.examples) == (3, 2, 1)
    await storage.close()
