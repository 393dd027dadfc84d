"""What ``doctor`` tells of one subject."""

from __future__ import annotations

import msgspec

OK, NOTE, PROBLEM = "ok", "note", "problem"


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at. ``level`` is ok, note or problem; a problem has a remedy."""

    level: str
    subject: str
    detail: str
    remedy: str = ""
