"""The part of the schema that budgets read, in SQL: what was reserved for a send, and what each day has cost."""

STATEMENTS = (
    # Of a row: what is expected of it. 0 in rows of an earlier schema, which is unknown.
    "ALTER TABLE escalations ADD COLUMN task TEXT",
    "ALTER TABLE escalations ADD COLUMN estimated_input_tokens INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE escalations ADD COLUMN estimated_output_tokens INTEGER NOT NULL DEFAULT 0",
    # Of a send: the most that it can cost, counted as spent on ``day`` until its outcome is known.
    "ALTER TABLE attempts ADD COLUMN reserved_tokens INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE attempts ADD COLUMN reserved_nanodollars INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE attempts ADD COLUMN day TEXT",
    "ALTER TABLE attempts ADD COLUMN task TEXT NOT NULL DEFAULT ''",
)

# Who is asked next where a target has no budget, gave up or cannot be reached (JSON: [{name, fingerprint}, ...]).
ROUTES = (
    "ALTER TABLE escalations ADD COLUMN next_targets TEXT",
    (
        "CREATE INDEX escalations_to_move_on ON escalations (target, turn_ms)"
        " WHERE state = 'pending' AND next_targets IS NOT NULL"
    ),
)

# Of a send and of its line in the log: the policy that let it leave, and what was replaced (JSON: kind -> pieces).
# NULL in lines of an earlier schema; both are under the chain's MAC in all others.
LOG_STATEMENTS = (
    "ALTER TABLE attempts ADD COLUMN policy TEXT",
    "ALTER TABLE attempts ADD COLUMN redactions TEXT",
    "ALTER TABLE egress_log ADD COLUMN policy TEXT",
    "ALTER TABLE egress_log ADD COLUMN redactions TEXT",
    # Messages that a person put in place of the request's own before releasing the row.
    "ALTER TABLE escalations ADD COLUMN edited BLOB",
)

# By UTC day, target and task ('': none): counters, so that no claim adds up a month of sends.
SPENT = """
    day TEXT NOT NULL,
    target TEXT NOT NULL,
    task TEXT NOT NULL,
    tokens INTEGER NOT NULL,
    nanodollars INTEGER NOT NULL,
    PRIMARY KEY (day, target, task)
"""
