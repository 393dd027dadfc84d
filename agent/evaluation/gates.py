"""Gates of an evaluation: ``accuracy>=0.9``, ``hard:accuracy>=80%``, ``p95_ms<=500``. Pure.

A figure that is unknown passes no gate. A gate that is passed by the figure but not by its
interval is passed with a warning: so few cases cannot carry the claim.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Sequence
from decimal import Decimal

import msgspec

from agent.errors import InvalidRequest
from agent.evaluation.variants import Scores
from agent.report import intervals
from agent.report.intervals import Estimate, Share

METRICS = (
    "accuracy",
    "agreement",
    "exact",
    "f1",
    "numeric",
    "schema_valid",
    "local_share",
    "served_accuracy",
    "p50_ms",
    "p95_ms",
    "cost",
    "monthly_cost",
    "joules",
)
MONTH_DAYS = 30
_COMPARED: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_GATE = re.compile(
    r"(?:(?P<tag>[^:\s]+):)?(?P<metric>[a-z0-9_]+)\s*(?P<sign>>=|<=|>|<)\s*(?P<limit>[0-9]+(?:\.[0-9]+)?)(?P<percent>%?)"
)
MOST_CASES = 100_000


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """What a figure must be."""

    text: str
    metric: str
    sign: str
    limit: float
    tag: str | None = None


class Passage(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a variant passes a gate."""

    gate: str
    passed: bool
    told: str  # the figure in words
    carried: bool | None = None  # its interval passes too; None: it has none
    needed: int | None = (
        None  # cases that would carry it, as they were answered; None: no number would, or it is carried
    )


def parse_gate(text: str, tags: Sequence[str]) -> Gate:
    """Return the gate that a text says. Raises InvalidRequest that names what is known."""
    found = _GATE.fullmatch(text.strip())
    if found is None:
        raise InvalidRequest(f"--gate {text[:60]!r} is none: write it as accuracy>=0.9 or hard:accuracy>=80%")
    metric, tag = found["metric"], found["tag"]
    if metric not in METRICS:
        near = difflib.get_close_matches(metric, METRICS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(METRICS)}"
        raise InvalidRequest(f"--gate {text[:60]!r}: there is no figure {metric}; {hint}")
    if tag is not None and metric != "accuracy":
        raise InvalidRequest(f"--gate {text[:60]!r}: only accuracy is known by tag")
    if tag is not None and tag not in tags:
        raise InvalidRequest(f"--gate {text[:60]!r}: no case has the tag {tag}; known are {', '.join(tags) or 'none'}")
    limit = float(found["limit"]) / (100 if found["percent"] else 1)
    return Gate(text=text.strip(), metric=metric, sign=found["sign"], limit=limit, tag=tag)


def passage(gate: Gate, scores: Scores, *, per_day: Decimal | None = None, proven: bool = False) -> Passage:
    """Return whether the figure passes; ``proven``: its interval has to. ``per_day``: requests, for monthly_cost."""
    figure = figure_of(gate.metric, scores, tag=gate.tag, per_day=per_day)
    if figure is None or (isinstance(figure, Share) and figure.value is None):
        return Passage(gate=gate.text, passed=False, told="unknown")
    compare = _COMPARED[gate.sign]
    if isinstance(figure, float):
        return Passage(gate=gate.text, passed=compare(figure, gate.limit), told=f"{figure:g}")
    worst = figure.low if gate.sign in {">=", ">"} else figure.high
    value = figure.value or 0.0
    carried = compare(worst, gate.limit)
    told = str(figure) if isinstance(figure, Share) else f"{figure.value:g} ({figure.low:g} to {figure.high:g})"
    return Passage(
        gate=gate.text,
        passed=carried if proven else compare(value, gate.limit),
        told=told,
        carried=carried,
        needed=None if carried or not isinstance(figure, Share) else cases_needed(value, gate.limit, gate.sign),
    )


def figure_of(
    metric: str, scores: Scores, *, tag: str | None = None, per_day: Decimal | None = None
) -> Share | Estimate | float | None:
    """Return a figure by its name; None: unknown."""
    if tag is not None:
        return scores.by_tag.get(tag)
    match metric:
        case "local_share":
            return scores.served
        case "cost":
            return None if scores.dollars is None else float(scores.dollars)
        case "monthly_cost":
            known = scores.dollars is not None and per_day is not None
            return float((scores.dollars or 0) * (per_day or 0) * MONTH_DAYS) if known else None
        case _:
            found: Share | Estimate | float | None = getattr(scores, metric)
            return found


def cases_needed(value: float, limit: float, sign: str) -> int | None:
    """Return how many cases would carry a share, if it stayed as it is; None: no number would."""
    low, high = 1, MOST_CASES
    if not _carries(value, limit, sign, high):
        return None
    while low < high:
        middle = (low + high) // 2
        if _carries(value, limit, sign, middle):
            high = middle
        else:
            low = middle + 1
    return high


def _carries(value: float, limit: float, sign: str, count: int) -> bool:
    below, above = intervals.wilson(value, count)
    return _COMPARED[sign](below if sign in {">=", ">"} else above, limit)
