"""``outrider salvage``: what a damaged database still holds, in a new one."""

from __future__ import annotations

import click
import msgspec

from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import counted, emit_json, notice


@click.command()
@json_option
@pass_invocation
def salvage(invocation: Invocation, as_json: bool) -> None:
    """Take what can be read out of a damaged database into a new one.

    For when Outrider says that its database is damaged and no backup is newer. The daemon must be
    stopped. Pages are authenticated: what is read is right, the rest is counted as lost. A request
    whose place in the queue is lost waits for a person. The damaged file is kept beside the new one.

    Example:  outrider salvage
    """
    from agent.cli.access import now_ms
    from agent.cli.key import alone
    from agent.storage import salvage as storage_salvage

    data_path = invocation.data_path
    with alone(data_path):
        report = storage_salvage.salvage(data_path, now_ms=now_ms())
    if as_json:
        emit_json(msgspec.to_builtins(msgspec.structs.replace(report, kept=str(report.kept))))
        return
    for name, table in report.tables.items():
        if table.lost != 0:
            lost = "how many are lost is not known" if table.lost is None else f"{table.lost} lost"
            click.echo(f"{name}: {counted(table.kept, 'row')} kept, {lost}")
    if not any(table.lost != 0 for table in report.tables.values()):
        click.echo("every row could be read")
    if report.held:
        notice(
            f"{counted(report.held, 'request')} lost its place in the queue and waits for you: `outrider queue list`"
        )
    if report.unanswered:
        notice(f"{counted(report.unanswered, 'late answer')} is lost, though it had come")
    if report.log_bad_row is not None:
        notice(f"the log of what left is not whole any more, from its line {report.log_bad_row} on")
    notice(f"the damaged database is kept as {report.kept}; remove it when you need it no more")
