"""Escalate outbox rows to a target and join the answer."""
