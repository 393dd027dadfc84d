"""Budgets over a real database: nothing passes them, also not together; what was reserved is settled."""

import asyncio
from decimal import Decimal

import msgspec
import pytest
from fakes.storage_values import DAY, NOW, enqueue, opened, queued, request

from agent.egress_settings import BudgetSettings
from agent.escalation.budget import Budget
from agent.escalation.charging import charging
from agent.records import CloudAnswer, EscalationState
from agent.settings import TargetSettings
from agent.storage.costs import Used
from agent.storage.spending import Amount, OverBudget
from agent.token_estimate import estimate
from agent.types import Generation, Handoff, RequestKind, Sampling

TARGETS = tuple(
    TargetSettings(
        name=name, base_url="https://x/v1", model="m", egress="allow", input_price=Decimal(1), output_price=Decimal(1)
    )
    for name in ("cloud", "other")
)
LEASE_MS = 60_000


def budget(**fields):
    return Budget(TARGETS, budgets=(BudgetSettings(name="daily", **fields),))


async def storage_with(tmp_path, budget):
    storage = await opened(tmp_path)
    storage.outbox.charging = charging(budget.prices)
    storage.outbox.budgets = budget.ceilings
    return storage


async def start_send(storage, tokens, *, target="cloud", now_ms=NOW):
    """Claim the next row and begin to send it; return the row and what the budget said."""
    claimed = await storage.outbox.claim(target, now_ms=now_ms, lease_ms=LEASE_MS)
    if claimed is None:
        return None, None
    row = claimed[0]
    most = Amount(tokens, tokens * 1000)  # a dollar per million
    return row, await storage.outbox.begin_send(row, body_sha256="0" * 64, body_bytes=9, now_ms=now_ms, most=most)


def answer(prompt_tokens, output_tokens):
    return CloudAnswer(
        text="Port Vila", finish_reason="stop", model="m", prompt_tokens=prompt_tokens, output_tokens=output_tokens
    )


async def spent(storage, unit="tokens", now_ms=NOW):
    found = await storage.outbox.standings(storage.outbox.budgets, now_ms)
    return next(one.spent for one in found if one.unit == unit)


async def test_sends_at_the_same_time_do_not_pass_it_together(tmp_path):
    storage = await storage_with(tmp_path, budget(tokens_per_day=1000))
    for _ in range(20):
        await enqueue(storage)
    told = await asyncio.gather(*(start_send(storage, 300) for _ in range(20)))
    begun = [row for row, over in told if row is not None and over is None]
    assert len(begun) == 3
    assert await spent(storage) == 900
    assert (await storage.outbox.counts())[EscalationState.LEASED]["rows"] == 3
    await storage.close()


async def test_what_does_not_fit_waits_for_the_next_day_and_says_why(tmp_path):
    storage = await storage_with(tmp_path, budget(dollars_per_day=Decimal("0.0005")))
    record = await enqueue(storage)
    _, over = await start_send(storage, 501)
    assert isinstance(over, OverBudget)
    assert "over budget daily until 2023-11-15 00:00 UTC: 0 of 0.0005 dollars of the day" in over.reason
    waiting = await storage.outbox.get(record.id)
    assert (waiting.state, waiting.attempts, waiting.lease) == (EscalationState.PENDING, 0, None)
    assert waiting.last_error == over.reason
    assert await storage.outbox.next_available_ms("cloud", NOW) == over.until_ms
    assert await spent(storage, "dollars") == 0
    _, over = await start_send(storage, 500, now_ms=over.until_ms)
    assert over is None
    await storage.close()


async def test_a_claim_passes_over_what_is_not_expected_to_fit(tmp_path):
    storage = await storage_with(tmp_path, budget(tokens_per_day=200))
    big = await enqueue(storage, text="x" * 4000)
    small = await enqueue(storage, now_ms=NOW + 1, text="small?", sampling=Sampling(max_tokens=10))
    row, over = await start_send(storage, 100, now_ms=NOW + 2)
    assert (row.request_id, over) == (small.id, None)
    assert (await storage.outbox.get(big.id)).last_error.startswith("over budget daily")
    assert await storage.outbox.claim("cloud", now_ms=NOW, lease_ms=LEASE_MS) is None
    await storage.close()


@pytest.mark.parametrize(
    ("end", "counted"),
    [
        ("succeed", 15),  # as the target counted
        ("without usage", 300),  # it did not count
        ("retry", 300),  # it may have answered
        ("unknown", 300),
        ("unreadable", 300),
        ("refused", 0),
        ("offline", 0),
    ],
)
async def test_a_reservation_is_settled_by_what_is_known(tmp_path, end, counted):
    storage = await storage_with(tmp_path, budget(tokens_per_day=1000, dollars_per_month=Decimal(1)))
    record = await enqueue(storage)
    row, _ = await start_send(storage, 300)
    assert await spent(storage) == 300
    known = {"reason": "r", "left": True, "now_ms": NOW}
    match end:
        case "succeed":
            await storage.outbox.succeed(row, answer(10, 5), now_ms=NOW)
        case "without usage":
            await storage.outbox.succeed(row, answer(0, 0), now_ms=NOW)
        case "retry":
            await storage.outbox.retry(row, available_at_ms=NOW, **known)
        case "unreadable":
            await storage.outbox.reject(row, used=Used(0, 0), **known)
        case "refused":
            await storage.outbox.reject(row, **known)
        case "offline":
            await storage.outbox.snooze(row, available_at_ms=NOW, **{**known, "left": False})
        case _:
            await storage.outbox.rescue(NOW, every_lease=True)
    assert await spent(storage) == counted
    assert await spent(storage, "dollars") == Decimal(counted) / 1_000_000
    await storage.outbox.purge(now_ms=NOW, unfetched=True)
    assert await storage.journal.get(record.id) is None or end in {"retry", "offline", "unknown"}
    assert await spent(storage) == counted  # what was spent outlives the row
    await storage.close()


async def test_it_covers_only_its_target_and_task_and_a_month_is_the_sum_of_its_days(tmp_path):
    one = BudgetSettings(name="one", target="cloud", task="sort", tokens_per_month=500)
    storage = await storage_with(tmp_path, Budget(TARGETS, budgets=(one,)))
    for later_ms, task in enumerate(("sort", "sort", None)):
        await enqueue(storage, now_ms=NOW + later_ms, task=task, sampling=Sampling(max_tokens=1))
    await enqueue(storage, queued("other"), task="sort")
    assert (await start_send(storage, 300, now_ms=NOW + 9))[1] is None
    assert isinstance((await start_send(storage, 300, now_ms=NOW + DAY))[1], OverBudget)
    assert (await start_send(storage, 300, now_ms=NOW + DAY))[1] is None  # of no task
    assert (await start_send(storage, 300, target="other", now_ms=NOW + DAY))[1] is None
    assert await spent(storage, now_ms=NOW + DAY) == 300
    await storage.close()


async def test_where_the_price_is_unknown_no_budget_in_dollars_lets_it_pass(tmp_path):
    target = msgspec.structs.replace(TARGETS[0], input_price=None, output_price=None)
    told = Budget((target,), budgets=(BudgetSettings(name="daily", dollars_per_day=Decimal(1)),))
    storage = await storage_with(tmp_path, told)
    record = await enqueue(storage)
    assert await storage.outbox.claim("cloud", now_ms=NOW, lease_ms=LEASE_MS) is None
    assert "the price of cloud is unknown" in (await storage.outbox.get(record.id)).last_error
    await storage.close()


def test_the_estimate_takes_what_the_local_model_counted_and_the_limit_of_the_answer():
    asked = request("x" * 400, sampling=Sampling(max_tokens=50))
    assert tuple(msgspec.structs.astuple(estimate(asked, None, Handoff.FRESH))) == (100, 50)
    drafted = Generation(text="y", prompt_tokens=80, output_tokens=20)
    assert tuple(msgspec.structs.astuple(estimate(asked, drafted, Handoff.FRESH))) == (80, 20)
    assert estimate(asked, drafted, Handoff.REFINE).input_tokens > 100


def test_the_estimate_of_a_choice_counts_the_labels_and_not_what_an_encoder_read():
    asked = request("x" * 400, kind=RequestKind.CLASSIFY, labels=("refund", "a lost card"))
    by_head = Generation(text="refund", prompt_tokens=6)
    assert tuple(msgspec.structs.astuple(estimate(asked, by_head, Handoff.FRESH))) == (105, 3)
    by_model = Generation(text="refund", prompt_tokens=130)
    assert estimate(asked, by_model, Handoff.FRESH).input_tokens == 130
