"""A queue of very many rows, made quickly: without triggers and indexes, which come back at the end."""

from __future__ import annotations

from pathlib import Path

from fakes import storage_values as values

from agent.storage import rows

TEXT = "a question of the usual length, " * 9

_REQUESTS = """
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :count)
INSERT INTO requests (id, state, kind, model, body_sha256, received_at_ms, settled_at_ms, action, reason,
    accepted_egress, accepted_target, accepted_fingerprint, body)
SELECT printf('01800000-0000-7000-8000-%012x', n), 'queued', 'chat', 'small', 'ab', :now_ms, :now_ms, 'queued',
    'low_confidence', 'allow', :target, :fingerprint, :body FROM numbers
"""
_ROWS = """
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :count)
INSERT INTO escalations (id, request_id, state, reason, target, target_fingerprint, egress, handoff, allowed,
    max_attempts, turn_ms, created_at_ms, available_at_ms, expires_at_ms, bytes)
SELECT printf('01900000-0000-7000-8000-%012x', n), printf('01800000-0000-7000-8000-%012x', n), 'pending',
    'low_confidence', :target, :fingerprint, 'allow', 'fresh', 1, 12, :now_ms + n / 1000, :now_ms, :now_ms,
    :now_ms + 604800000, 400 FROM numbers
"""


def fill(data: Path, count: int, *, target: str, fingerprint: str, now_ms: int) -> None:
    """Put ``count`` pending rows into the database of ``data``."""
    body = rows.pack(values.request(TEXT, now_ms=now_ms))
    given = {"count": count, "now_ms": now_ms, "target": target, "fingerprint": fingerprint}
    raw = values.raw_connection(data)
    for pragma in ("synchronous = OFF", "journal_mode = OFF", "cache_size = -600000", "foreign_keys = OFF"):
        raw.execute(f"PRAGMA {pragma}").fetchall()
    made = raw.execute(
        "SELECT type, name, sql FROM sqlite_schema WHERE type IN ('index', 'trigger') AND sql IS NOT NULL"
        " AND tbl_name IN ('requests', 'escalations')"
    ).fetchall()
    raw.execute("BEGIN")
    for kind, name, _ in made:
        raw.execute(f"DROP {kind} {name}")
    raw.execute(_REQUESTS, {**given, "body": body})
    raw.execute(_ROWS, given)
    for _, _, sql in sorted(made):
        raw.execute(sql)
    raw.execute("INSERT INTO request_counts VALUES ('queued', ?)", (count,))
    raw.execute("INSERT INTO escalation_counts VALUES ('pending', ?, ?, ?)", (target, count, 400 * count))
    raw.execute("COMMIT")
    raw.execute("PRAGMA journal_mode = WAL").fetchall()
    raw.close()
