"""``outrider queue edit``: other words in place of what would leave."""

from __future__ import annotations

import json
from typing import IO, Any

import click

from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import DECLINED, emit_json, notice, printable, size
from agent.errors import InvalidRequest, WrongState

WAITING = "awaiting_approval"


@click.command()
@click.argument("row_id", metavar="ID")
@click.option("--text", help="What stands in place of the user's last message.")
@click.option(
    "--file",
    "given",
    type=click.File(encoding="utf-8"),
    help="JSON of all messages in place of the request's: [{role, content}, ...]; - for stdin.",
)
@json_option
@pass_invocation
def edit(invocation: Invocation, row_id: str, text: str | None, given: IO[str] | None, as_json: bool) -> None:
    """Change what would leave, while the row waits for a person.

    Opens $EDITOR with the messages where neither --text nor --file says them. What was written is
    what leaves, pseudonymised and checked as ever; the local draft and images do not go along. The
    request itself stays as its owner sent it. Release it then.

    Example:  outrider queue edit 0197c0de-... --text "What is the capital of Vanuatu?"
    """
    from agent.cli.access import open_access

    if text is not None and given is not None:
        raise click.UsageError("--text and --file contradict each other: keep one")
    with open_access(invocation.loaded) as access:
        if text is None and given is None and (state := access.row(row_id)["state"]) != WAITING:
            raise WrongState(f"row {row_id} is {state}: only one that waits for a person can be edited")
        messages = None if text is not None else _edited(access.messages(row_id), given)
        row = access.edit(row_id, text, messages)
        shown = access.as_sent(row_id, None) if row["target"] else None
    if as_json:
        emit_json(row)
        return
    click.echo(f"{row['id']} is edited")
    if shown is not None:
        notice(f"as it would leave now, {size(len(shown))}:")
        notice(printable(shown.decode("utf-8", "replace")))


def _edited(messages: list[dict[str, Any]], given: IO[str] | None) -> list[dict[str, Any]]:
    """Return what a person makes of messages, in a file or in an editor. Raises InvalidRequest for no JSON list."""
    text = given.read() if given else click.edit(json.dumps(messages, indent=2, ensure_ascii=False), extension=".json")
    if text is None:
        notice("nothing was changed: the editor saved nothing")
        raise click.exceptions.Exit(DECLINED)
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"this is not JSON: {error}", param="messages") from error
    if not isinstance(found, list):
        raise InvalidRequest("the messages are a JSON list of {role, content}", param="messages")
    return found
