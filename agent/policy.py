"""From the configuration to what routing goes by."""

from __future__ import annotations

from agent.routing import Policy, TargetRule
from agent.rules import Rulebook
from agent.settings import Settings


def routing_policy(settings: Settings, rules: Rulebook) -> Policy:
    """Return the policy of a configuration. ``rules`` are its own, compiled."""
    targets = tuple(
        TargetRule(one.name, one.egress, one.handoff, one.fingerprint, one.images.egress, one.max_input_tokens)
        for one in settings.targets
    )
    return Policy(threshold=settings.confidence.threshold, targets=targets, ceiling=settings.egress.policy, rules=rules)
