"""Judge answers: pure functions of what the engine returned."""
