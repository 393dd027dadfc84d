"""What an outcome does to its row: the effects of the outcome table in agent.escalation.replies."""

from __future__ import annotations

from random import Random

from agent.escalation.connectivity import BACKOFF_CAP_S, full_jitter_s, held_wait_ms
from agent.escalation.target import Blocked, Delivered, Held, Offline, Outcome, RateLimited, Rejected, Retry
from agent.records import Escalation
from agent.storage.outbox import Outbox

RETRY_BASE_S = 2.0


async def settle(
    outbox: Outbox, row: Escalation, outcome: Outcome, *, now_ms: int, hold_s: float, random: Random
) -> Escalation:
    """Store the outcome of a send and return the row as it stands then. Raises LeaseLost, StorageError.

    ``hold_s``: for how long its target has asked for patience.
    """
    if isinstance(outcome, Delivered):
        await outbox.succeed(row, outcome.answer, now_ms=now_ms)
        return row
    reason, left = outcome.reason, outcome.left
    match outcome:
        case Rejected():
            return await outbox.reject(row, reason=reason, left=left, now_ms=now_ms, used=outcome.used)
        case Retry():
            wait_s = full_jitter_s(random, row.attempts, base_s=RETRY_BASE_S, cap_s=BACKOFF_CAP_S)
            at_ms = max(now_ms + round(wait_s * 1000), outcome.until_ms or 0)
            return await outbox.retry(row, available_at_ms=at_ms, reason=reason, left=left, now_ms=now_ms)
        case Held():
            at_ms, replied = now_ms + held_wait_ms(now_ms - row.created_at_ms), False
        case RateLimited():
            # It may be this row alone that is put off: those times are counted.
            at_ms, replied = now_ms + round(hold_s * 1000), left
        case Offline():
            # The circuit keeps it back; as soon as that closes, the row is due.
            at_ms, replied = now_ms, left
        case Blocked():
            at_ms, replied = now_ms, False
    return await outbox.snooze(row, available_at_ms=at_ms, reason=reason, left=left, now_ms=now_ms, replied=replied)
