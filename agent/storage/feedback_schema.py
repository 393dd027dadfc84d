"""Schema 4 in SQL: feedback, monitors, and the purpose of an outbox row."""

# One row for each request and origin: the last word of each holds. No reference to the request: what
# was said stays an example when the request's own texts have gone.
FEEDBACK = """
    id TEXT PRIMARY KEY,
    request_id TEXT NOT NULL,
    task TEXT,
    origin TEXT NOT NULL CHECK (origin IN ('caller', 'review', 'quality_sample', 'escalation')),
    verdict TEXT NOT NULL CHECK (verdict IN ('approved', 'corrected', 'labelled', 'skipped')),
    is_right INTEGER CHECK (is_right IN (0, 1)),
    served INTEGER NOT NULL CHECK (served IN (0, 1)),
    propensity REAL CHECK (propensity > 0 AND propensity <= 1),
    created_at_ms INTEGER NOT NULL,
    body BLOB NOT NULL,
    UNIQUE (request_id, origin)
"""

MONITORS = """
    task TEXT PRIMARY KEY,
    body BLOB NOT NULL
"""

# A quality sample is sent up to be compared; its request stays answered by what was served.
STATEMENTS = (
    (
        "ALTER TABLE escalations ADD COLUMN purpose TEXT NOT NULL DEFAULT 'answer'"
        " CHECK (purpose IN ('answer', 'quality_sample'))"
    ),
    "CREATE INDEX feedback_by_task ON feedback (task, id)",
    "CREATE INDEX feedback_by_time ON feedback (created_at_ms)",
)
