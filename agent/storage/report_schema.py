"""The part of the schema that reports read, in SQL: figures that outlive the texts, money, labels.

No figure here is text of a user. ``costs`` and ``label_counts`` refer to no request: what was
spent, and how often a label was the answer, stay true when a request is deleted.
"""

# Of an answer: who made it and what it took. NULL in rows of an earlier schema.
COLUMNS = (
    "ALTER TABLE requests ADD COLUMN task TEXT",
    "ALTER TABLE requests ADD COLUMN arm TEXT",
    "ALTER TABLE results ADD COLUMN model TEXT",
    "ALTER TABLE results ADD COLUMN input_tokens INTEGER CHECK (input_tokens >= 0)",
    "ALTER TABLE results ADD COLUMN output_tokens INTEGER CHECK (output_tokens >= 0)",
    "ALTER TABLE results ADD COLUMN tokens_estimated INTEGER CHECK (tokens_estimated IN (0, 1))",
    "ALTER TABLE results ADD COLUMN duration_ms REAL CHECK (duration_ms >= 0)",
)

# One row for each send that was paid for, or may have been. NULL: unknown, which is never 0.
COSTS = """
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms INTEGER NOT NULL,
    request_id TEXT NOT NULL,
    escalation_id TEXT NOT NULL,
    target TEXT NOT NULL,
    model TEXT,
    task TEXT,
    arm TEXT,
    outcome TEXT NOT NULL,
    input_tokens INTEGER CHECK (input_tokens >= 0),
    output_tokens INTEGER CHECK (output_tokens >= 0),
    nanodollars INTEGER CHECK (nanodollars >= 0),
    price TEXT
"""

# Answers that were served, by UTC day. An answer that was not sure counts when, and as what, it was resolved.
LABEL_COUNTS = """
    day TEXT NOT NULL,
    task TEXT NOT NULL,
    label TEXT NOT NULL,
    answers INTEGER NOT NULL,
    PRIMARY KEY (day, task, label)
"""

INDEXES = (
    "CREATE INDEX costs_by_time ON costs (at_ms)",
    "CREATE INDEX costs_by_request ON costs (request_id)",
)
