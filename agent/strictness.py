"""Which of two policies about what may leave is the stricter one. Pure."""

from __future__ import annotations

from agent.types import EgressPolicy

STRICTNESS = (EgressPolicy.ALLOW, EgressPolicy.REDACT, EgressPolicy.APPROVE, EgressPolicy.NEVER)
"""From the loosest to the strictest."""


def stricter(one: EgressPolicy, *others: EgressPolicy | None) -> EgressPolicy:
    """Return the strictest of some policies (never > approve > redact > allow); None says nothing."""
    return max((one, *(other for other in others if other is not None)), key=STRICTNESS.index)
