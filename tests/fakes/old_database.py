"""A database of an early release, with a full queue."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from fakes import storage_values as values
from fakes.storage_values import NOW

from agent.storage import connection, keys, migrations, rows
from agent.storage.connection import DATABASE_NAME

OLD_SCHEMA = 3


def old_database(
    folder: Path,
    waiting: int,
    monkeypatch: pytest.MonkeyPatch,
    *,
    fingerprint: str = values.FINGERPRINT,
    now_ms: int = NOW,
) -> set[str]:
    """Make a data directory of schema 3 where ``waiting`` rows are pending; return the ids of their requests."""
    folder.mkdir()
    with monkeypatch.context() as patch:
        for module in (connection, migrations):
            patch.setattr(module, "SCHEMA_VERSION", OLD_SCHEMA)
        patch.setattr(migrations, "MIGRATIONS", migrations.MIGRATIONS[:OLD_SCHEMA])
        migrations.migrate(folder / DATABASE_NAME, keys.load_or_create(folder, {}).material)
    raw = values.raw_connection(folder)
    requests = [values.request(f"old question {number}", now_ms=now_ms) for number in range(waiting)]
    raw.execute("BEGIN")
    for request in requests:
        raw.execute(
            "INSERT INTO requests (id, state, kind, model, body_sha256, received_at_ms, settled_at_ms, accepted_egress,"
            " accepted_target, accepted_fingerprint, body) VALUES (?, 'queued', 'chat', 'small', ?, ?, ?, 'allow',"
            " 'cloud', ?, ?)",
            (request.id, request.body_sha256, now_ms, now_ms, fingerprint, rows.pack(request)),
        )
        raw.execute(
            "INSERT INTO results (request_id, source, created_at_ms, body) VALUES (?, 'local', ?, ?)",
            (request.id, now_ms, msgspec.msgpack.encode(values.generation())),
        )
        raw.execute(
            "INSERT INTO escalations (id, request_id, state, reason, target, target_fingerprint, egress, handoff,"
            " allowed, max_attempts, turn_ms, created_at_ms, available_at_ms, expires_at_ms, bytes) VALUES (?, ?,"
            " 'pending', 'low_confidence', 'cloud', ?, 'allow', 'fresh', 1, 12, ?, ?, ?, ?, 400)",
            (f"e-{request.id}", request.id, fingerprint, now_ms, now_ms, now_ms, now_ms + values.DAY),
        )
    raw.execute("COMMIT")
    raw.close()
    return {request.id for request in requests}
