"""A report in words and columns, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from agent.cli.output import moment, printable
from agent.escalation.prices import written

if TYPE_CHECKING:
    from agent.report.book import Difference, Group, Quality, ReportBook
    from agent.report.intervals import Estimate

WIDTH = 26


def lines(found: ReportBook) -> Iterator[str]:
    """Yield the lines of a report."""
    yield f"From {moment(found.since_ms)} to {moment(found.until_ms)}"
    yield ""
    yield from group_lines(found.total)
    for group in found.groups:
        yield ""
        yield f"{found.by} {printable(group.name)}"
        yield from group_lines(group)
    for one in found.differences:
        yield ""
        yield from _difference_lines(one)
    yield ""
    yield _row("paid in this time", str(found.paid))
    for paid in found.paid_to:
        known = written(paid.dollars) if paid.unknown < paid.sends else "unknown"
        what = f"{known}, {paid.sends} sends, {paid.input_tokens} tokens in, {paid.output_tokens} out"
        unknown = f", {paid.unknown} sends of unknown cost" if paid.unknown else ""
        yield _row(f"  {printable(paid.target)}", f"{what}{unknown}; {paid.price or 'price unknown'}")
    for price in found.prices:
        yield _row(f"price now, {price.target}", price.price or "unknown")
    if found.labels:
        yield ""
        yield "labels that were served (uncertain answers are in no count)"
        for label in found.labels:
            yield _row(f"  {label.task}", f"{label.answers:8d}  {printable(label.label)}")
    for note in found.notes:
        yield ""
        yield f"Note: {note}."


def group_lines(group: Group) -> Iterator[str]:
    """Yield the figures of one group."""
    done = group.outcomes
    yield _row("requests", str(group.requests))
    yield _row(
        "  became",
        f"{done.served_locally} served locally, {done.resolved} answered by a target, {done.uncertain} uncertain, "
        f"{done.waiting} waiting, {done.unresolved} unresolved, {done.cancelled} cancelled, {done.failed} failed",
    )
    for one in group.handled:
        yield _row("  answered by", f"{one.requests} {printable(one.model) or '(unnamed)'} ({printable(one.by)})")
    yield _row("local share", str(group.local_share))
    yield _row("escalated", str(group.escalated_share))
    each = group.cost_per_request
    beside = "" if each is None else f"; a request {_dollars(each)}"
    a_send = "" if group.cost_per_send is None else f"; a send {written(group.cost_per_send)}"
    yield _row("cost", f"{group.cost}{beside}{a_send}")
    yield _row("all-cloud would cost", str(group.all_cloud))
    share = "" if group.saving_share is None else f" ({group.saving_share:.1%})"
    yield _row("saving", f"{written(group.saving)}{share}")
    yield from _quality_lines(group.quality)
    yield _row("feedback", str(group.feedback_share))
    for span in group.latency:
        yield _row(
            f"latency, {span.kind}, {printable(span.by)}",
            f"p50 {span.p50:.0f} ms, p95 {span.p95.value:.0f} ms ({span.p95.low:.0f} to {span.p95.high:.0f}), "
            f"n={span.requests}",
        )


def _quality_lines(quality: Quality) -> Iterator[str]:
    errors, change = quality.silent_errors, quality.change
    if change is None:
        yield _row("quality change", "unknown (no samples of served answers)")
    else:
        yield _row(
            "quality change",
            f"{change.value * 100:+.1f} points beside all-cloud ({change.low * 100:+.1f} to {change.high * 100:+.1f}, "
            f"n={quality.samples} samples; the target's word taken for right)",
        )
    yield _row("silent errors", str(errors))
    if quality.drafts_right.value is not None:
        yield _row("escalated drafts right", str(quality.drafts_right))
    if quality.people.value is not None:
        yield _row("right, by people", f"{quality.people}; chosen by them, not drawn")


def _difference_lines(one: Difference) -> Iterator[str]:
    yield f"{printable(one.name)} beside {printable(one.beside)}"
    shares = (
        ("local share", one.local_share),
        ("silent errors", one.silent_errors),
        ("right, by people", one.people),
    )
    for name, estimate in shares:
        if estimate is not None:
            told = f"{estimate.value * 100:+.1f} points ({estimate.low * 100:+.1f} to {estimate.high * 100:+.1f})"
            yield _row(f"  {name}", f"{told}{_sure(estimate)}")
    if (cost := one.cost_per_request) is not None:
        yield _row("  cost per request", f"{_dollars(cost)}{_sure(cost)}")


def _sure(estimate: Estimate) -> str:
    return "" if estimate.low > 0 or estimate.high < 0 else "; may be none"


def _dollars(estimate: Estimate) -> str:
    return f"${estimate.value:.6f} (${estimate.low:.6f} to ${estimate.high:.6f})"


def _row(name: str, text: str) -> str:
    return f"{name:<{WIDTH}} {text}"
