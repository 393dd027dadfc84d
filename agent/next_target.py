"""Who else is asked."""

from __future__ import annotations

import msgspec


class NextTarget(msgspec.Struct, frozen=True):
    """Who is asked after a target that has no budget, gave up, or cannot be reached."""

    name: str
    fingerprint: str
