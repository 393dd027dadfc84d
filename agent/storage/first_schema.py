"""The tables that schema 1 made, in SQL. Never changed: what came later is added by its own migration."""

REQUEST_STATES = "'running','answered','queued','resolved','unresolved','cancelled','failed'"
ESCALATION_STATES = "'awaiting_approval','pending','leased','succeeded','dead','expired','cancelled'"

SENT_AT_ONCE_1 = "CHECK (allowed = 0 OR egress = 'allow')"
SENT_AT_ONCE_2 = "CHECK (allowed = 0 OR egress IN ('redact', 'allow'))"

REQUESTS = f"""
    id TEXT PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ({REQUEST_STATES})),
    kind TEXT NOT NULL,
    model TEXT NOT NULL,
    idempotency_key TEXT,
    body_sha256 TEXT NOT NULL,
    received_at_ms INTEGER NOT NULL,
    settled_at_ms INTEGER,
    action TEXT,
    reason TEXT,
    confidence TEXT,
    decision TEXT,
    answered_by TEXT,
    fetched_at_ms INTEGER,
    bodies_until_ms INTEGER,
    accepted_egress TEXT NOT NULL CHECK (accepted_egress IN ('never', 'redact', 'approve', 'allow')),
    accepted_target TEXT,
    accepted_fingerprint TEXT,
    body BLOB,
    CHECK ((state = 'running') = (settled_at_ms IS NULL)),
    CHECK (state NOT IN ('running', 'queued') OR body IS NOT NULL),
    CHECK (state NOT IN ('running', 'queued') OR bodies_until_ms IS NULL)
"""

RESULTS = """
    request_id TEXT NOT NULL REFERENCES requests (id) ON DELETE CASCADE,
    source TEXT NOT NULL CHECK (source IN ('local', 'target')),
    created_at_ms INTEGER NOT NULL,
    body BLOB,
    PRIMARY KEY (request_id, source)
"""

# ``allowed`` (accepted under "allow" for this target) and ``released`` (by a person, to this
# target) are the database's own guard on egress: nothing is sent, or waits to be sent, without
# one of them. Both hold for the address and model of ``target_fingerprint`` alone.
# ``turn_ms`` is the place in line: the moment of acceptance, or of the last try.
ESCALATIONS = f"""
    id TEXT PRIMARY KEY,
    request_id TEXT NOT NULL UNIQUE REFERENCES requests (id) ON DELETE CASCADE,
    state TEXT NOT NULL CHECK (state IN ({ESCALATION_STATES})),
    reason TEXT NOT NULL,
    target TEXT,
    target_fingerprint TEXT,
    egress TEXT NOT NULL CHECK (egress IN ('redact', 'approve', 'allow')),
    handoff TEXT NOT NULL CHECK (handoff IN ('fresh', 'refine', 'verify')),
    allowed INTEGER NOT NULL CHECK (allowed IN (0, 1)),
    released INTEGER NOT NULL DEFAULT 0 CHECK (released IN (0, 1)),
    priority INTEGER NOT NULL DEFAULT 0,
    turn_ms INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    snoozes INTEGER NOT NULL DEFAULT 0 CHECK (snoozes >= 0),
    max_attempts INTEGER NOT NULL CHECK (max_attempts >= 1),
    created_at_ms INTEGER NOT NULL,
    available_at_ms INTEGER NOT NULL,
    expires_at_ms INTEGER NOT NULL,
    deferred INTEGER NOT NULL DEFAULT 0 CHECK (deferred IN (0, 1)),
    lease TEXT UNIQUE,
    lease_expires_at_ms INTEGER,
    settled_at_ms INTEGER,
    last_error TEXT,
    bytes INTEGER NOT NULL CHECK (bytes >= 0),
    CHECK (attempts BETWEEN 0 AND max_attempts),
    CHECK ((state = 'leased') = (lease IS NOT NULL)),
    CHECK ((state = 'leased') = (lease_expires_at_ms IS NOT NULL)),
    CHECK (deferred = 0 OR state = 'pending'),
    {SENT_AT_ONCE_1},
    CHECK (state NOT IN ('pending', 'leased', 'succeeded') OR allowed = 1 OR released = 1),
    CHECK (state NOT IN ('pending', 'leased', 'succeeded') OR (target IS NOT NULL AND target_fingerprint IS NOT NULL)),
    CHECK ((state IN ('succeeded', 'dead', 'expired', 'cancelled')) = (settled_at_ms IS NOT NULL))
"""

ATTEMPTS = """
    id INTEGER PRIMARY KEY,
    escalation_id TEXT NOT NULL REFERENCES escalations (id) ON DELETE CASCADE,
    lease TEXT NOT NULL UNIQUE,
    target TEXT NOT NULL,
    body_sha256 TEXT NOT NULL,
    body_bytes INTEGER NOT NULL CHECK (body_bytes >= 0),
    started_at_ms INTEGER NOT NULL,
    finished_at_ms INTEGER,
    outcome TEXT CHECK (outcome IN ('succeeded', 'snoozed', 'retry', 'rejected', 'unknown')),
    error TEXT,
    CHECK ((finished_at_ms IS NULL) = (outcome IS NULL))
"""

# No reference to the escalation: the log outlives it.
EGRESS_LOG = """
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms INTEGER NOT NULL,
    escalation_id TEXT NOT NULL,
    request_id TEXT NOT NULL,
    target TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    body_sha256 TEXT NOT NULL,
    outcome TEXT NOT NULL,
    mac BLOB NOT NULL
"""

COUNTS = {
    "request_counts": "state TEXT PRIMARY KEY, n_rows INTEGER NOT NULL",
    "escalation_counts": (
        "state TEXT NOT NULL, target TEXT NOT NULL, n_rows INTEGER NOT NULL, n_bytes INTEGER NOT NULL,"
        " PRIMARY KEY (state, target)"
    ),
}

INDEXES = (
    "CREATE UNIQUE INDEX requests_by_key ON requests (idempotency_key) WHERE idempotency_key IS NOT NULL",
    "CREATE INDEX requests_by_state ON requests (state, id)",
    "CREATE INDEX requests_to_purge ON requests (bodies_until_ms) WHERE bodies_until_ms IS NOT NULL",
    (
        "CREATE INDEX requests_to_drop ON requests (settled_at_ms)"
        " WHERE bodies_until_ms IS NULL AND state NOT IN ('running', 'queued')"
    ),
    (
        "CREATE INDEX requests_unfetched ON requests (state)"
        " WHERE state = 'resolved' AND fetched_at_ms IS NULL AND bodies_until_ms IS NOT NULL"
    ),
    "CREATE INDEX escalations_by_state ON escalations (state, id)",
    # Rows that wait for a later moment are in an index of their own: a claim never walks over them.
    "CREATE INDEX escalations_ready ON escalations (target, priority DESC, turn_ms, id) WHERE state = 'pending' AND deferred = 0",
    "CREATE INDEX escalations_deferred ON escalations (target, available_at_ms) WHERE state = 'pending' AND deferred = 1",
    "CREATE INDEX escalations_leased ON escalations (lease_expires_at_ms) WHERE state = 'leased'",
    "CREATE INDEX escalations_to_expire ON escalations (expires_at_ms) WHERE state IN ('awaiting_approval', 'pending')",
    "CREATE INDEX attempts_by_escalation ON attempts (escalation_id)",
    "CREATE INDEX egress_by_time ON egress_log (at_ms)",
)

_COUNT_REQUEST = (
    "INSERT INTO request_counts VALUES ({row}.state, {sign}1)"
    " ON CONFLICT (state) DO UPDATE SET n_rows = n_rows {sign} 1;"
)
_COUNT_ESCALATION = (
    "INSERT INTO escalation_counts VALUES ({row}.state, ifnull({row}.target, ''), {sign}1, {sign}{row}.bytes)"
    " ON CONFLICT (state, target) DO UPDATE SET n_rows = n_rows {sign} 1, n_bytes = n_bytes {sign} {row}.bytes;"
)


def _counters(table: str, statement: str, columns: str) -> tuple[str, str, str]:
    plus, minus = statement.format(row="NEW", sign="+"), statement.format(row="OLD", sign="-")
    return (
        f"CREATE TRIGGER {table}_count_insert AFTER INSERT ON {table} BEGIN {plus} END",
        f"CREATE TRIGGER {table}_count_update AFTER UPDATE OF {columns} ON {table} BEGIN {minus} {plus} END",
        f"CREATE TRIGGER {table}_count_delete AFTER DELETE ON {table} BEGIN {minus} END",
    )


TRIGGERS = (
    *_counters("requests", _COUNT_REQUEST, "state"),
    *_counters("escalations", _COUNT_ESCALATION, "state, target, bytes"),
    *(
        f"CREATE TRIGGER egress_log_no_{verb} BEFORE {verb} ON egress_log"
        " BEGIN SELECT RAISE(ABORT, 'the egress log is append-only'); END"
        for verb in ("update", "delete")
    ),
)
