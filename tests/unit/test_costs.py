"""What sends cost, kept with the send: exact, unknown never 0, and true after the request is gone."""

import asyncio

import msgspec
from fakes import storage_values as values
from fakes.journal_values import LATE, ask
from fakes.storage_values import NOW

from agent.records import Accepted
from agent.storage.costs import Charge, Used
from agent.types import Action, Generation, Reason, RequestKind


def priced(target, input_tokens, output_tokens):
    return Charge(3 * input_tokens + 15 * output_tokens, f"of {target}") if target == "cloud" else None


async def claimed(storage):
    row, _ = await storage.outbox.claim("cloud", now_ms=NOW, lease_ms=1000)
    await storage.outbox.begin_send(row, body_sha256="ab", body_bytes=12, now_ms=NOW)
    return row


async def costs(storage):
    found = await storage.db.read(lambda connection: connection.execute("SELECT * FROM costs ORDER BY id").fetchall())
    return [(row["outcome"], row["input_tokens"], row["output_tokens"], row["nanodollars"]) for row in found]


def test_each_send_that_was_or_may_have_been_paid_for_has_a_row(tmp_path):
    async def go():
        storage = await values.opened(tmp_path)
        storage.outbox.charging = priced
        for number in range(5):
            await ask(storage, values.queued(), text=str(number), task="mail", arm="x/a")
        await storage.outbox.succeed(await claimed(storage), LATE, now_ms=NOW)
        await storage.outbox.reject(await claimed(storage), reason="empty", left=True, now_ms=NOW, used=Used(9, 0, "m"))
        await storage.outbox.reject(await claimed(storage), reason="400", left=True, now_ms=NOW)
        await storage.outbox.cancel((await claimed(storage)).id, now_ms=NOW)
        row = await claimed(storage)
        await storage.outbox.retry(row, available_at_ms=NOW, reason="timeout", left=True, now_ms=NOW)
        expected = [
            ("succeeded", 9, 5, 102),
            ("rejected", 9, 0, 27),
            ("unknown", None, None, None),
            ("retry", None, None, None),
        ]
        assert await costs(storage) == expected
        await storage.outbox.purge(now_ms=NOW, unfetched=True)
        assert await costs(storage) == expected  # the money is spent, whoever forgets the request
        row = await storage.db.read(lambda connection: connection.execute("SELECT * FROM costs").fetchone())
        assert (row["task"], row["arm"], row["price"], row["model"]) == ("mail", "x/a", "of cloud", "big")
        await storage.close()

    asyncio.run(go())


def test_a_target_that_counts_no_tokens_costs_nobody_knows_what(tmp_path):
    async def go():
        storage = await values.opened(tmp_path)
        storage.outbox.charging = priced
        await ask(storage, values.queued())
        await storage.outbox.reject(await claimed(storage), reason="x", left=True, now_ms=NOW, used=Used(0, 0))
        assert await costs(storage) == [("rejected", None, None, None)]
        await storage.close()

    asyncio.run(go())


LABELS = {"kind": RequestKind.CLASSIFY, "task": "mail", "labels": ("refund", "hours")}
UNSURE = values.Decision(action=Action.UNCERTAIN, reason=Reason.ABSTAINED, rule_id="caller")


async def label_counts(storage):
    found = await storage.db.read(lambda connection: connection.execute("SELECT * FROM label_counts").fetchall())
    return {(row["task"], row["label"]): row["answers"] for row in found}


async def classify(storage, label, decision, **fields):
    asked = values.request(label, **{**LABELS, **fields})
    return await storage.journal.record(asked, Accepted(), Generation(text=label), None, decision, now_ms=NOW)


def test_an_uncertain_answer_is_in_no_count_of_labels(tmp_path):
    async def go():
        storage = await values.opened(tmp_path)
        await classify(storage, "refund", values.ANSWERED)
        await classify(storage, "refund", UNSURE)
        await classify(storage, "no label of it", values.ANSWERED)
        await classify(storage, "refund", values.ANSWERED, task=None)
        await classify(storage, "refund", values.queued())  # a draft: it counts as what it is resolved to
        assert await label_counts(storage) == {("mail", "refund"): 1}
        row = await claimed(storage)
        await storage.outbox.succeed(row, msgspec.structs.replace(LATE, text="hours"), now_ms=NOW)
        assert await label_counts(storage) == {("mail", "refund"): 1, ("mail", "hours"): 1}
        await storage.close()

    asyncio.run(go())
