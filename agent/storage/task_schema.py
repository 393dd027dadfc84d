"""The tables of what was learned of tasks."""

TASK_HEADS = """
    task TEXT PRIMARY KEY,
    created_at_ms INTEGER NOT NULL,
    body BLOB NOT NULL
"""

CALIBRATIONS = """
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL,
    task TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    ended_at_ms INTEGER,
    body BLOB NOT NULL
"""

LABEL_MEANS = """
    task TEXT PRIMARY KEY,
    body BLOB NOT NULL
"""

TASK_EXAMPLES = """
    task TEXT NOT NULL,
    use TEXT NOT NULL CHECK (use IN ('teach', 'calibrate')),
    created_at_ms INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (task, use)
"""
