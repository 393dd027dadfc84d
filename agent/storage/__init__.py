"""Keep requests, answers and the outbox, encrypted on disk."""
