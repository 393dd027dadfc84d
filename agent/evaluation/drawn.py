"""Of examples that carry how they came about, those that are a fair sample of the traffic. Pure.

What was escalated is labelled every time, what was served only now and then. Taken together unweighted
they would say that the task is harder than it is, and of escalated ones alone nothing follows for what is
served. So each is kept with the chance ``least propensity / its propensity``: what is left was drawn with
one and the same chance, as a certificate wants. (Thinning: weights without weighted tests.)
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.confidence.heads import text_digest
from agent.evaluation.examples import Example


def fair_sample(found: Sequence[Example]) -> tuple[list[Example], list[str]]:
    """Return the examples that a calibration may use, and what a person should know of the others."""
    plain = [one for one in found if not one.origin]
    drawn = [one for one in found if one.origin and one.propensity is not None]
    picked = len(found) - len(plain) - len(drawn)
    notices = []
    if picked:
        notices.append(
            f"{picked} examples were picked, not drawn at random (no propensity): they may teach, not certify"
        )
    if drawn and not any(one.served for one in drawn):
        notices.append(
            f"{len(drawn)} examples are of what was escalated only, and say nothing of what is served: left out "
            "(quality_sample of the task, or `outrider review --served 0.05`, draws from what is served)"
        )
        drawn = []
    least = min((one.propensity for one in drawn if one.propensity is not None), default=1.0)
    kept = [one for one in drawn if _number(one) * (one.propensity or 1.0) < least]
    if len(kept) < len(drawn):
        notices.append(f"{len(drawn) - len(kept)} examples are left out so that all were drawn with the same chance")
    return sorted([*plain, *kept], key=lambda one: one.line), notices


def _number(one: Example) -> float:
    """Return a number in [0, 1) that depends on the input alone."""
    return int.from_bytes(text_digest("thin " + one.input), "big") / float(1 << 64)
