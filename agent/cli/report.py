"""``outrider report``: what was done, what it cost, and how good it was; or, before building, what it would cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from agent.cli import planning
from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import emit_json, emit_json_line
from agent.errors import InvalidRequest

if TYPE_CHECKING:
    from agent.cli.client import DaemonClient

PAGE = 1000


@click.command()
@click.option("--since", metavar="WHEN", default="30d", help="7d, 12h, 2026-11-01. Default: 30d.")
@click.option("--until", metavar="WHEN", help="The same; default: now.")
@click.option("--by", type=click.Choice(["arm", "task", "model", "kind", "day"]), help="A part for each of them.")
@click.option("--task", help="Only requests of this task.")
@click.option("--each", is_flag=True, help="One JSON line for each request: who answered it, and what it cost.")
@planning.plan_options
@json_option
@pass_invocation
def report(
    invocation: Invocation,
    /,
    since: str,
    until: str | None,
    by: str | None,
    task: str | None,
    each: bool,
    plan: bool,
    as_json: bool,
    **wished: Any,
) -> int:
    """Tell what was answered where, what it cost, what it saved, and how good the answers were.

    Money is exact and has its price book with the date; what nobody knows is "unknown", never 0.
    A share has its 95 % interval and its n. Needs the running daemon; --plan does not.

    Example:  outrider report --since 7d --by arm
    """
    if plan:
        return _plan(invocation, wished, as_json=as_json)
    if given := [name for name in planning.NAMES if wished[name] is not None]:
        raise InvalidRequest(f"--{given[0].replace('_', '-')} needs --plan")
    from agent.cli.client import DaemonClient
    from agent.cli.moments import moment_ms

    span: dict[str, object] = {"since_ms": moment_ms(since, "--since")}
    if until is not None:
        span["until_ms"] = moment_ms(until, "--until")
    if each and (by or task):
        raise InvalidRequest("--each lists all requests of the span: leave --by and --task out")
    with DaemonClient(invocation.settings) as client:
        if each:
            _each(client, span)
            return 0
        found = client.get("/v1/report", by=by, task=task, **span)
    if as_json:
        emit_json(found)
    else:
        _tell(found)
    return 0


def _plan(invocation: Invocation, wished: dict[str, Any], *, as_json: bool) -> int:
    found = planning.planned(invocation.settings, wished)
    if as_json:
        emit_json(found)
    else:
        for line in planning.plan_lines(found):
            click.echo(line)
    return 0


def _each(client: DaemonClient, span: dict[str, object]) -> None:
    after = None
    while True:
        page = client.get("/v1/report/requests", limit=PAGE, after=after, **span)
        for line in page["data"]:
            emit_json_line(line)
        if not page["has_more"]:
            return
        after = page["data"][-1]["id"]


def _tell(found: dict[str, Any]) -> None:
    import msgspec

    from agent.cli.report_text import lines
    from agent.report.book import ReportBook

    for line in lines(msgspec.convert({k: v for k, v in found.items() if k != "object"}, ReportBook)):
        click.echo(line)
