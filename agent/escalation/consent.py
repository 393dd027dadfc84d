"""The policy, checked again at the moment of sending. Pure."""

from __future__ import annotations

from agent.settings import TargetSettings
from agent.types import EgressPolicy, Escalation, RequestRecord, RouteMode


def forbidden(record: RequestRecord, row: Escalation, target: TargetSettings) -> str | None:
    """Return why this row must never be sent to this target, or None.

    A row accepted under ``approve`` is claimable only once a person has released it, so here it
    counts as allowed. ``redact`` is refused as long as nothing redacts.
    """
    request = record.request
    if request is None:
        return "its text is no longer stored"
    if row.target != target.name:
        return "it was accepted for another target"
    if request.route_mode is RouteMode.LOCAL_ONLY:
        return "its route is local_only"
    if request.egress in {EgressPolicy.NEVER, EgressPolicy.REDACT}:
        return f"its policy is {request.egress}"
    if row.egress in {EgressPolicy.NEVER, EgressPolicy.REDACT}:
        return f"it was accepted under {row.egress}"
    return None
