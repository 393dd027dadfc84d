"""``outrider erase``: remove what is kept of one person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import confirm, counted, emit_json, notice, table

# Field of the answer -> what it is called.
KINDS = {
    "requests": "requests",
    "answers": "answers, local and late",
    "escalations": "rows of the queue",
    "edits": "texts that a person put in their place",
    "attempts": "sends",
    "feedback": "feedback",
    "webhook_events": "webhook events",
    "batch_lines": "lines of batches",
    "file_lines": "lines of uploaded files",
    "examples": "examples of tasks",
}


@click.command()
@click.option("--subject", required=True, metavar="NAME", help="The person, exactly as requests name them.")
@click.option("--dry-run", is_flag=True, help="Only count what there is.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_invocation
def erase(invocation: Invocation, subject: str, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Remove what is kept of one person: requests, answers, queue, feedback, files, examples.

    NAME is what requests said as user, safety_identifier or metadata.subject. What is under way at a
    target is cancelled, and its answer not taken. The log of what left and the costs stay: they hold
    moments, sizes, hashes and ids, no text. Backups, and what a target keeps, are not reached.

    Example:  outrider erase --subject customer-4711 --dry-run
    """
    from agent.cli.access import open_access
    from agent.errors import InvalidRequest

    if not subject:
        raise InvalidRequest("say whose: --subject NAME", param="subject")
    with open_access(invocation.loaded) as access:
        if dry_run or not yes:
            found = access.erase(subject, dry_run=True)
            if not dry_run:
                if not as_json:
                    _show(found)
                confirm("erase it now?")
        done = found if dry_run else access.erase(subject, dry_run=False)
    copies = [str(path) for path in _copies(invocation.data_path)]
    if as_json:
        emit_json({**done, "copies_not_reached": copies})
        return
    if dry_run or yes:
        _show(done)
    if not dry_run:
        click.echo("erased")
    if done["in_flight"]:
        were = "are" if dry_run else "were"
        notice(f"{counted(done['in_flight'], 'row')} {were} under way at a target: what has left cannot be called back")
    for task in done["untaught"]:
        notice(f"task {task} showed one of the examples: teach it again")
    for path in copies:
        notice(f"not reached, an older copy of the database: {path}; remove it when you need no way back")
    if not dry_run:
        notice("backups are not reached, nor what a target keeps: outrider egress shows what was sent")


def _show(found: dict[str, Any]) -> None:
    table(["KIND", "COUNT"], [(name, found[field]) for field, name in KINDS.items()])


def _copies(data_path: Path) -> list[Path]:
    """Return older databases that an upgrade or a restore left beside the one in use."""
    beside = {path for pattern in ("outrider.db.*", "before-*.db") for path in data_path.glob(pattern)}
    return sorted(path for path in beside if not path.name.endswith((".raw-key", "-wal", "-shm")))
