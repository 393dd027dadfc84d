"""The report equals a sum over the database that was made without it, to the cent and beyond."""

import asyncio
import random
from collections import Counter
from decimal import Decimal

import msgspec
import pytest
from fakes import storage_values as values
from fakes.journal_values import LATE
from fakes.storage_values import DAY, NOW

from agent.escalation.charging import charging
from agent.escalation.prices import PriceBook
from agent.records import Accepted, Feedback, FeedbackOrigin, Verdict
from agent.report.making import By, Wanted, make_report
from agent.settings import TargetSettings
from agent.storage.costs import Used
from agent.types import Action, Decision, EgressPolicy, Generation, Reason

CLOUD = TargetSettings(
    name="cloud",
    base_url="https://x.test/v1",
    model="big",
    egress=EgressPolicy.ALLOW,
    input_price=Decimal("2.5"),
    output_price=Decimal(10),
)
ROUTE = Accepted(egress=EgressPolicy.ALLOW, target="cloud", target_fingerprint=values.FINGERPRINT)
UNCERTAIN = Decision(action=Action.UNCERTAIN, reason=Reason.LOCAL_ONLY, rule_id="route")
FATES = ("served", "served", "served", "resolved", "twice", "rejected", "lost", "uncertain", "failed", "waiting")


async def live(storage, fate, number, chance):
    """Let one request come and end."""
    now_ms = NOW + number * 60_000
    asked = values.request(
        f"question {number}", now_ms=now_ms, task=chance.choice(["mail", None]), arm=chance.choice(["x/a", "x/b", None])
    )
    await storage.journal.open(asked, ROUTE, now_ms=now_ms)
    answer = Generation(
        text="ja", prompt_tokens=chance.choice([0, 40, 913]), output_tokens=chance.randint(0, 300), model="small"
    )
    decision = {"served": values.ANSWERED, "uncertain": UNCERTAIN, "failed": values.REFUSED}.get(fate, values.queued())
    await storage.journal.settle(asked, answer, values.UNSURE, decision, now_ms=now_ms + chance.randint(5, 900))
    if fate == "twice":  # of no use at first, and paid for
        row, _ = await storage.outbox.claim("cloud", now_ms=now_ms, lease_ms=1000)
        await storage.outbox.begin_send(row, body_sha256="ab", body_bytes=9, now_ms=now_ms)
        await storage.outbox.reject(row, reason="no label", left=True, now_ms=now_ms, used=Used(77, 5))
        await storage.outbox.retry_by_hand(row.id, hold=lambda _: None, now_ms=now_ms)
        fate = "resolved"
    if fate in {"resolved", "rejected", "lost"}:
        row, _ = await storage.outbox.claim("cloud", now_ms=now_ms, lease_ms=1000)
        await storage.outbox.begin_send(row, body_sha256="ab", body_bytes=9, now_ms=now_ms)
        used = Used(chance.randint(1, 5000), chance.randint(0, 700))
        if fate == "resolved":
            late = msgspec.structs.replace(LATE, prompt_tokens=used.input_tokens, output_tokens=used.output_tokens)
            await storage.outbox.succeed(row, late, now_ms=now_ms + 40_000)
        elif fate == "rejected":
            await storage.outbox.reject(row, reason="no label", left=True, now_ms=now_ms, used=used)
        else:
            await storage.outbox.cancel(row.id, now_ms=now_ms)
    return asked.id


async def lived(tmp_path, fates, *, price=True):
    storage = await values.opened(tmp_path)
    targets = (CLOUD,) if price else (msgspec.structs.replace(CLOUD, input_price=None, output_price=None),)
    book = PriceBook(targets)
    storage.outbox.charging = charging(book)
    chance = random.Random(11)
    ids = [await live(storage, fate, number, chance) for number, fate in enumerate(fates)]
    return storage, book, targets, ids


async def reported(storage, book, targets, by=None, task=None, since_ms=0, until_ms=NOW + 30 * DAY):
    return await make_report(storage.report, Wanted(since_ms, until_ms, by, task), book, targets)


def raw(storage, statement):
    connection = values.raw_connection(storage.db.path.parent)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


def test_money_equals_an_independent_sum_over_the_database(tmp_path):
    async def go():
        chance = random.Random(5)
        fates = [fate for fate in chance.choices(FATES, k=120) if fate != "lost"]
        storage, book, targets, _ = await lived(tmp_path, fates)
        found = await reported(storage, book, targets, By.ARM)
        await storage.db.checkpoint()
        paid = sum(
            Decimal(i) * 25 / 10 + Decimal(o) * 10
            for i, o in raw(storage, "SELECT input_tokens, output_tokens FROM costs")
        )
        local = raw(
            storage,
            "SELECT input_tokens, output_tokens, state, action, arm FROM requests JOIN results ON id = request_id"
            " WHERE source = 'local'",
        )
        spared = sum(
            Decimal(i) * 25 / 10 + Decimal(o) * 10 for i, o, state, action, _ in local if state == action == "answered"
        )
        answered = sum(
            Decimal(i) * 25 / 10 + Decimal(o) * 10
            for i, o in raw(storage, "SELECT input_tokens, output_tokens FROM costs WHERE outcome = 'succeeded'")
        )
        total = found.total
        assert total.cost.dollars == found.paid.dollars == paid / 1_000_000
        assert total.all_cloud.dollars == (spared + answered) / 1_000_000
        assert total.saving == (spared + answered - paid) / 1_000_000
        assert sum(one.dollars for one in found.paid_to) == paid / 1_000_000
        states = Counter(state for _, _, state, _, _ in local)
        assert (total.outcomes.resolved, total.outcomes.failed) == (states["resolved"], states["failed"])
        assert sum(msgspec.structs.asdict(total.outcomes).values()) == total.requests == len(fates)
        arms = {group.name: group for group in found.groups}
        assert {name: group.requests for name, group in arms.items()} == {
            arm: number for arm, number in Counter(arm for *_, arm in local).items() if arm
        }
        assert (
            sum(group.cost.dollars for group in found.groups)
            == sum(Decimal(n) for (n,) in raw(storage, "SELECT nanodollars FROM costs WHERE arm IS NOT NULL")) / 10**9
        )
        assert {one.beside for one in found.differences} == {"x/a"}
        assert total.estimated == sum(
            1
            for (n,) in raw(
                storage,
                "SELECT tokens_estimated FROM results JOIN requests ON id = request_id"
                " WHERE source = 'local' AND state = 'answered' AND action = 'answered'",
            )
            if n
        )
        await storage.close()

    asyncio.run(go())


def test_one_send_of_unknown_cost_makes_the_sum_unknown(tmp_path):
    async def go():
        storage, book, targets, _ = await lived(tmp_path, ["served", "resolved", "lost"])
        found = await reported(storage, book, targets)
        assert found.total.cost.dollars is None
        assert found.total.cost.unknown == 1
        assert found.total.cost.known > 0
        assert found.total.saving is None
        assert str(found.total.cost).startswith("unknown ($")
        await storage.close()

    asyncio.run(go())


def test_a_price_that_nobody_wrote_down_is_unknown_and_not_nothing(tmp_path):
    async def go():
        storage, book, targets, _ = await lived(tmp_path, ["served", "resolved"], price=False)
        found = await reported(storage, book, targets)
        assert (found.total.cost.dollars, found.total.all_cloud.dollars, found.total.saving) == (None, None, None)
        assert found.prices[0].price is None
        assert any("input_price" in note for note in found.notes)
        await storage.close()

    asyncio.run(go())


def said(request_id, origin, right, **fields):
    return Feedback(
        **{
            "id": f"{request_id}{origin}",
            "request_id": request_id,
            "task": None,
            "origin": origin,
            "verdict": Verdict.APPROVED if right else Verdict.CORRECTED,
            "right": right,
            "served": True,
            "propensity": None,
            "created_at_ms": NOW,
            **fields,
        }
    )


def test_the_quality_change_stands_beside_the_saving_with_its_n(tmp_path):
    async def go():
        storage, book, targets, ids = await lived(tmp_path, ["served"] * 80 + ["resolved"] * 20)
        for number, request_id in enumerate(ids[:40]):
            await storage.feedback.put(
                said(request_id, FeedbackOrigin.QUALITY_SAMPLE, number % 10 != 0, propensity=0.5)
            )
        for number, request_id in enumerate(ids[80:]):  # the last word on each counts, not what its join said of it
            await storage.feedback.put(said(request_id, FeedbackOrigin.ESCALATION, number < 8, served=False))
        await storage.feedback.put(said(ids[0], FeedbackOrigin.CALLER, False))
        await storage.feedback.put(said(ids[1], FeedbackOrigin.REVIEW, None, verdict=Verdict.SKIPPED))
        quality = (await reported(storage, book, targets)).total.quality
        assert (quality.samples, quality.silent_errors.value, quality.silent_errors.of) == (40, 0.1, 40)
        assert quality.change.value == pytest.approx(-0.08)  # a tenth of four fifths
        assert quality.change.low == pytest.approx(-0.8 * quality.silent_errors.high)
        assert (quality.drafts_right.count, quality.drafts_right.of) == (8, 20)
        assert (quality.people.count, quality.people.of) == (0, 1)
        feedback = (await reported(storage, book, targets)).total.feedback_share
        assert (feedback.count, feedback.of) == (1, 100)
        await storage.close()

    asyncio.run(go())


def test_samples_of_unequal_chance_are_weighted(tmp_path):
    async def go():
        storage, book, targets, ids = await lived(tmp_path, ["served"] * 30)
        for number, request_id in enumerate(ids):
            often = number < 20
            await storage.feedback.put(
                said(request_id, FeedbackOrigin.QUALITY_SAMPLE, often, propensity=1.0 if often else 0.5)
            )
        errors = (await reported(storage, book, targets)).total.quality.silent_errors
        assert errors.value == pytest.approx(10 * 2 / (20 + 10 * 2))
        assert errors.of == pytest.approx(40 * 40 / (20 + 10 * 4))
        await storage.close()

    asyncio.run(go())


def test_a_span_holds_what_was_received_in_it_and_a_task_its_own(tmp_path):
    async def go():
        storage, book, targets, ids = await lived(tmp_path, ["served"] * 10)
        part = await reported(storage, book, targets, since_ms=NOW + 3 * 60_000, until_ms=NOW + 7 * 60_000)
        assert part.total.requests == 4
        tasks = raw(storage, "SELECT count(*) FROM requests WHERE task = 'mail'")[0][0]
        assert (await reported(storage, book, targets, task="mail")).total.requests == tasks
        assert [len(page) for page in [await storage.report.page(0, NOW + DAY, 4, ids[3])]] == [4]
        empty = await reported(storage, book, targets, since_ms=NOW + DAY)
        assert (empty.total.requests, empty.total.cost.dollars, empty.total.local_share.value) == (0, 0, None)
        await storage.close()

    asyncio.run(go())
