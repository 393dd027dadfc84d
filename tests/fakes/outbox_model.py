"""What the outbox should hold, in plain values."""

from dataclasses import dataclass

REQUEST_OF = {
    "awaiting_approval": "queued",
    "pending": "queued",
    "leased": "queued",
    "succeeded": "resolved",
    "dead": "unresolved",
    "expired": "unresolved",
    "cancelled": "cancelled",
}
OPEN = {"awaiting_approval", "pending", "leased"}


@dataclass
class Row:
    request_id: str
    state: str
    target: str | None
    fingerprint: str | None
    allowed: bool
    expires: int
    available: int
    turn: int
    released: bool = False
    snoozes: int = 0
    attempts: int = 0
    lease: str | None = None
    lease_expires: int = 0
    sending: bool = False


def facts(row, fingerprint):
    return row.state, row.attempts, row.lease, row.target, fingerprint, row.released
