"""UUIDv7 (RFC 9562 section 5.7): identifiers that sort by the time they were made."""

from __future__ import annotations

import os
import uuid


def uuid7(now_ms: int, random_bytes: bytes | None = None) -> str:
    """Return a UUIDv7 for a moment in milliseconds since the Unix epoch.

    ``random_bytes`` (10 bytes) makes the result reproducible; by default they are drawn.
    """
    if not 0 <= now_ms < 1 << 48:
        raise ValueError(f"now_ms {now_ms} does not fit 48 bits")
    tail = bytearray(os.urandom(10) if random_bytes is None else random_bytes)
    tail[0] = 0x70 | (tail[0] & 0x0F)
    tail[2] = 0x80 | (tail[2] & 0x3F)
    return str(uuid.UUID(bytes=now_ms.to_bytes(6, "big") + bytes(tail)))
