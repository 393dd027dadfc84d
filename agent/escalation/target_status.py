"""What an operator sees of a target."""

from __future__ import annotations

import msgspec


class TargetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a user sees of a target. Moments in ms since the epoch; None where there is none."""

    name: str
    state: str  # unknown, online, offline, portal, blocked; unconfigured: rows wait for a name that is gone
    reason: str = ""
    next_probe_ms: int | None = None
    held_until_ms: int | None = None  # the target asked for patience
    last_success_ms: int | None = None
    outage_from_ms: int | None = None  # of the present outage, or of the last one since the start
    outage_until_ms: int | None = None
    in_flight: int = 0
    waiting: int | None = None  # rows, where state is unconfigured
