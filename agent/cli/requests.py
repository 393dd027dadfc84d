"""``outrider requests``: what was asked, what was decided, and both answers side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import emit_json, emit_json_line, moment, notice, printable, table
from agent.errors import NotFound, OutriderError

if TYPE_CHECKING:
    from agent.cli.access import Access

STATES = ("running", "answered", "queued", "resolved", "unresolved", "cancelled", "failed")
PATIENCE_S = 3600.0  # between two events of a stream; the daemon sends comments meanwhile


@click.group()
def requests() -> None:
    """See what was asked and what became of it.

    Works over HTTP when the daemon runs, else straight on its database.
    """


@requests.command(name="list")
@click.option("--state", type=click.Choice(STATES), help="Only requests in this state.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@json_option
@pass_invocation
def list_requests(invocation: Invocation, state: str | None, limit: int, as_json: bool) -> None:
    """Print requests, newest first, without their texts.

    Example:  outrider requests list --state queued
    """
    from agent.cli.access import open_access

    with open_access(invocation.loaded) as access:
        rows = access.requests(state, limit)
    if as_json:
        emit_json(rows)
        return
    table(
        ["ID", "RECEIVED", "STATE", "DECISION", "WHY", "CONFIDENCE", "ANSWER FROM"],
        [
            (
                row["id"],
                moment(row["received_at_ms"]),
                row["state"],
                (row["decision"] or {}).get("action"),
                (row["decision"] or {}).get("reason"),
                _score(row),
                row["answered_by"],
            )
            for row in rows
        ],
    )


@requests.command()
@click.argument("request_id", metavar="ID")
@json_option
@pass_invocation
def show(invocation: Invocation, request_id: str, as_json: bool) -> None:
    """Print one request (by its id or its queue row's): question, local answer, late answer, and how it was decided.

    Example:  outrider requests show 0197c0de-...
    """
    from agent.cli.access import open_access

    with open_access(invocation.loaded) as access:
        record = _record(access, request_id)
    if as_json:
        emit_json(record)
        return
    click.echo(f"{record['id']}  {record['state']}  received {moment(record['received_at_ms'])}")
    for title, text in texts(record):
        click.echo(f"\n{title}:\n{printable(text)}")
    click.echo(f"\n{explanation(record)}")


@requests.command()
@click.argument("request_id", metavar="ID")
@json_option
@pass_invocation
def watch(invocation: Invocation, request_id: str, as_json: bool) -> None:
    """Print each change of a request until it is settled. Needs the daemon.

    Example:  outrider requests watch 0197c0de-...
    """
    from agent.cli.client import DaemonClient

    with DaemonClient(invocation.settings) as client:
        for record in client.stream(f"/v1/requests/{request_id}/events", None, PATIENCE_S):
            if as_json:
                emit_json_line(record)
            else:
                row = record.get("escalation") or {}
                click.echo(f"{record['state']}  {row.get('state', '')}  {row.get('last_error') or ''}".rstrip())
    if not as_json:
        notice(f"see it with: outrider requests show {request_id}")


def _record(access: Access, given: str) -> dict[str, Any]:
    """Return the request of this id, or the one whose row in the queue has it."""
    try:
        return access.request(given)
    except OutriderError as unknown:
        if unknown.code != NotFound.code:
            raise
        try:
            row = access.row(given)
        except OutriderError:
            raise unknown from None
        return access.request(row["request_id"])


def texts(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the stored texts of a request with their titles, in the order in which they came."""
    request, generation, late = record.get("request"), record.get("generation"), record.get("cloud_answer")
    if request is None:
        return [("texts", "gone: their retention has passed")]
    found = [(message["role"], message["content"]) for message in request["messages"]]
    if generation and generation.get("text"):
        found.append((f"local answer ({generation.get('model')})", generation["text"]))
    if late:
        found.append((f"late answer ({late.get('model')} at {record.get('answered_by')})", late["text"]))
    return found


def explanation(record: dict[str, Any]) -> str:
    """Return signals, rule, threshold and decision of a request, one a line."""
    decision = record.get("decision") or {}
    confidence = record.get("confidence") or {}
    generation = record.get("generation") or {}
    lines = [f"decision    {decision.get('action', '-')} because {decision.get('reason', '-')}"]
    row = record.get("escalation") or {}
    if record.get("state") == "queued":
        lines[0] += f"; row {row.get('state') or '-'}"
    elif row and row["state"] != "succeeded":
        lines.append(f"row         {row['state']}: {printable(row.get('last_error') or row['reason'])}")
    lines.append(f"rule        {decision.get('rule_id', '-')}, threshold {_number(decision.get('threshold'))}")
    calibrated = "calibrated" if confidence.get("calibrated") else "uncalibrated"
    lines.append(
        f"confidence  {_number(confidence.get('score'))} ({confidence.get('estimator', 'no estimator')}, {calibrated})"
    )
    lines += [f"signal      {name} = {_number(value)}" for name, value in (confidence.get("signals") or {}).items()]
    for choice, said in enumerate([generation, *(generation.get("others") or ())]):
        place = f"choice {choice}: " if generation.get("others") else ""
        lines += [_field(place + pointer, field) for pointer, field in (said.get("fields") or {}).items()]
    if failure := generation.get("failure"):
        lines.append(f"failure     {failure['kind']}: {printable(failure['message'])}")
    lines += [f"trace       {step}" for step in decision.get("trace", ())]
    return "\n".join(lines)


def _field(place: str, field: dict[str, Any]) -> str:
    null = field.get("null_probability")
    beside = "" if null is None else f", null had {_number(null)}"
    return f"field       {printable(place) or '(the whole)'} = {_number(field.get('score'))}{beside}"


def _score(row: dict[str, Any]) -> str:
    return _number((row.get("confidence") or {}).get("score"))


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}"


@requests.command()
@click.option("--since", "since_h", type=click.FloatRange(min=0), help="All of the last so many hours, fetched or not.")
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True)
@click.option("--seen", is_flag=True, help="Count what is shown as fetched: it is not shown again by itself.")
@json_option
@pass_invocation
def digest(invocation: Invocation, since_h: float | None, limit: int, seen: bool, as_json: bool) -> None:
    """Print what became of answers that waited: what changed between draft and late answer.

    What is gone stands in [-brackets-], what is new in {+braces+}. Without --since: what nobody has
    fetched yet. Needs the daemon.

    Example:  outrider requests digest --seen
    """
    from agent.cli.access import now_ms
    from agent.cli.client import DaemonClient

    since_ms = None if since_h is None else max(0, now_ms() - round(since_h * 3_600_000))
    with DaemonClient(invocation.settings) as client:
        found = client.get("/v1/digest", since_ms=since_ms, limit=limit)
        if seen and found["data"]:
            client.post("/v1/digest/seen", {"ids": [one["request_id"] for one in found["data"]]})
    if as_json:
        emit_json(found)
        return
    for outage in found["outages"]:
        until = moment(outage["until_ms"]) if outage["until_ms"] else "now"
        notice(f"target {outage['target']} was out of reach from {moment(outage['from_ms'])} to {until}")
    for one in found["data"]:
        told = one.get("why") or f"by {one.get('answered_by')}"
        click.echo(printable(f"{one['request_id']}  {one['kind']}  {told}  {one['question']}"))
        for line in _changed_lines(one):
            click.echo(f"    {printable(line)}")
    counts = ", ".join(f"{kind}: {n}" for kind, n in sorted(found["counts"].items()))
    notice(counts or "nothing has come that was not fetched")
    if found["has_more"]:
        notice("... and more: raise --limit")


def _changed_lines(one: dict[str, Any]) -> list[str]:
    """Return what changed, with a few words around each change."""
    if one.get("fields"):
        return [f"{field['pointer']}: {field.get('before')} -> {field.get('after')}" for field in one["fields"]]
    pieces = one.get("pieces") or []
    if one["kind"] == "same" or not pieces:
        return []
    marks = {"removed": "[-{}-]", "added": "{{+{}+}}"}
    shown = [marks[op].format(text) if op in marks else _around(text) for op, text in pieces]
    return "".join(shown).splitlines()


def _around(text: str, most: int = 60) -> str:
    return text if len(text) <= 2 * most else f"{text[:most]} ... {text[-most:]}"
