"""``outrider doctor``: this machine and this installation, each problem with its remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import emit_json, printable

if TYPE_CHECKING:
    from agent.cli.finding import Finding

MARKS = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}
PROBLEM_FOUND = 1  # exit code


@click.command()
@click.option("--disk", is_flag=True, help="Only show who holds how much disk, and what could go.")
@json_option
@pass_invocation
def doctor(invocation: Invocation, disk: bool, as_json: bool) -> int:
    """Examine this machine and name each problem with its remedy.

    Exit code 1 when there is a problem. Nothing is changed and nobody outside is contacted.

    Example:  outrider doctor
    """
    if disk:
        from agent.cli.disk_report import report

        return report(invocation, as_json=as_json)
    from agent.cli.findings import examine

    findings = examine(invocation)
    if as_json:
        emit_json(findings)
    else:
        for finding in findings:
            _print(finding)
    return PROBLEM_FOUND if any(finding.level == "problem" for finding in findings) else 0


def _print(finding: Finding) -> None:
    click.echo(f"{MARKS[finding.level]}  {finding.subject}: {printable(finding.detail)}")
    if finding.remedy:
        click.echo(f"         -> {printable(finding.remedy)}")
