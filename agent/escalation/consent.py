"""The policy, checked again at the moment of sending. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from agent.egress_settings import ImageConsent
from agent.records import Escalation, HoldReason, RequestRecord
from agent.settings import TargetSettings
from agent.strictness import stricter
from agent.types import EgressPolicy, RouteMode

ToldNow = Callable[[RequestRecord], EgressPolicy | None]
"""Returns what the task of a request and its caller's key say now of what may leave; None: nothing."""

SENT_AT_ONCE = frozenset({EgressPolicy.ALLOW, EgressPolicy.REDACT})
"""Policies under which nobody has to release a row first."""


def nothing_told(record: RequestRecord) -> None:
    """Say nothing: there are no tasks, and no callers of their own."""


def as_told(record: RequestRecord, told: EgressPolicy | None) -> RequestRecord:
    """Return the record with its request under no looser policy than is told now."""
    if record.request is None or told is None:
        return record
    egress = stricter(told, record.request.egress)
    return msgspec.structs.replace(record, request=msgspec.structs.replace(record.request, egress=egress))


def forbidden(record: RequestRecord, row: Escalation, target: TargetSettings) -> str | None:
    """Return why this row must never be sent to this target, or None.

    Whether a person has to release the row is not asked here: see ``needs_person``.
    """
    request = record.request
    if request is None:
        return "its text is no longer stored"
    if row.target != target.name:
        return "it was accepted for another target"
    if request.route_mode is RouteMode.LOCAL_ONLY:
        return "its route is local_only"
    if request.egress is EgressPolicy.NEVER:
        return f"its policy is {request.egress}"
    if row.egress is EgressPolicy.NEVER:
        return "it was accepted under never"
    if holds_media(record) and target.images is ImageConsent.NEVER:
        return "it holds an image, sound or file, which its target does not get"
    return None


def as_it_is(record: RequestRecord, row: Escalation, target: TargetSettings) -> bool:
    """Return whether the text goes without pseudonyms: only where request, row and target all say ``allow``."""
    return _policies(record, row, target) == {EgressPolicy.ALLOW}


def seen_by_a_person(record: RequestRecord, row: Escalation, target: TargetSettings) -> bool:
    """Return whether somebody has to look at it before it leaves, whatever else holds."""
    return EgressPolicy.APPROVE in _policies(record, row, target)


def _policies(record: RequestRecord, row: Escalation, target: TargetSettings) -> set[EgressPolicy]:
    asked = record.request.egress if record.request else None
    return {row.egress, target.egress, asked or EgressPolicy.ALLOW}


def strictest(record: RequestRecord, row: Escalation, target: TargetSettings) -> EgressPolicy:
    """Return the policy that holds for one send: the strictest of what the request, the row and the target say."""
    return stricter(*_policies(record, row, target))


def needs_person(row: Escalation, target: TargetSettings, told: EgressPolicy | None = None) -> HoldReason | None:
    """Return why a person must release this row (again) before it may go to its target, or None.

    What it was allowed or released for is an address and a model, not a name; and what was only
    allowed does not go where its target, or what its task and caller say now (``told``), wants a release.
    """
    if row.target_fingerprint != target.fingerprint:
        return HoldReason.TARGET_CHANGED
    if not row.released and not {target.egress, told or EgressPolicy.ALLOW} <= SENT_AT_ONCE:
        return HoldReason.POLICY_TIGHTENED
    return None


def images_need_person(record: RequestRecord, row: Escalation, target: TargetSettings) -> HoldReason | None:
    """Return why a person must release this row for what is no text in it, or None."""
    if holds_media(record) and target.images is ImageConsent.APPROVE and not row.released:
        return HoldReason.HOLDS_IMAGES
    return None


def holds_media(record: RequestRecord) -> bool:
    """Whether what would leave holds something that is no text: what a person put in place of it may, too."""
    messages = record.edited or (record.request.messages if record.request else ())
    return any(message.parts for message in messages)


def under(targets: Sequence[TargetSettings]) -> Callable[[Escalation], HoldReason | None]:
    """Return ``needs_person`` for rows of any target, under this configuration."""
    by_name = {target.name: target for target in targets}

    def hold(row: Escalation) -> HoldReason | None:
        target = by_name.get(row.target or "")
        return HoldReason.TARGET_REMOVED if target is None else needs_person(row, target)

    return hold
