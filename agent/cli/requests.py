"""``outrider requests``: what was asked, what was decided, and both answers side by side."""

from __future__ import annotations

from typing import Any

import click

from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import emit_json, emit_json_line, moment, notice, printable, table

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

    with open_access(invocation.settings) as access:
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
    """Print one request: question, local answer, late answer, and how it was decided.

    Example:  outrider requests show 0197c0de-...
    """
    from agent.cli.access import open_access

    with open_access(invocation.settings) as access:
        record = access.request(request_id)
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
    if record.get("state") == "queued":
        lines[0] += f"; row {((record.get('escalation') or {}).get('state')) or '-'}"
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
