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

# By UTC day, target and task ('': none): counters, so that no claim adds up a month of sends.
SPENT = """
    day TEXT NOT NULL,
    target TEXT NOT NULL,
    task TEXT NOT NULL,
    tokens INTEGER NOT NULL,
    nanodollars INTEGER NOT NULL,
    PRIMARY KEY (day, target, task)
"""
