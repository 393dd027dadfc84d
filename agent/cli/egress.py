"""``outrider egress``: the record of what has left this device."""

from __future__ import annotations

import click

from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import counted, emit_json, moment, notice, size, table
from agent.errors import StorageCorrupt

DAY_MS = 86_400_000


@click.command()
@click.option("--days", type=click.FloatRange(0, 36_500), default=30.0, show_default=True, help="How far back.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--verify", is_flag=True, help="Check the whole log instead: nothing changed, nothing missing.")
@json_option
@pass_invocation
def egress(invocation: Invocation, days: float, limit: int, verify: bool, as_json: bool) -> int:
    """See what has left the device.

    Prints one line per send, newest first: when, where, how many bytes and their SHA-256. The
    texts are not in it. --verify checks the chain that ties each line to the one before; exit
    code 74 when it is broken.

    Example:  outrider egress --days 1

    Example:  outrider egress --verify
    """
    from agent.cli.access import now_ms, open_access

    if verify:
        with open_access(invocation.settings) as access:
            bad_id = access.first_bad_egress()
        if as_json:
            emit_json({"whole": bad_id is None, "first_bad_id": bad_id})
        else:
            click.echo("the log is whole" if bad_id is None else f"the log is BROKEN from entry {bad_id} on")
        return 0 if bad_id is None else StorageCorrupt.exit_code
    since_ms = max(0, now_ms() - int(days * DAY_MS))
    with open_access(invocation.settings) as access:
        found = access.egress(since_ms, limit)
    if as_json:
        emit_json(found)
        return 0
    table(
        ["WHEN", "TARGET", "BYTES", "OUTCOME", "REQUEST", "SHA-256"],
        [
            (
                moment(row["at_ms"]),
                row["target"],
                row["bytes"],
                row["outcome"],
                row["request_id"],
                row["body_sha256"][:16],
            )
            for row in found["data"]
        ],
    )
    totals = found["totals"]
    notice(f"left the device in {days:g} days: {counted(totals['rows'], 'send')}, {size(totals['bytes'])}")
    return 0
