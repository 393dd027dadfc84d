"""``outrider queue``: what waits to leave the device, and the verbs of whoever decides."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from agent.cli.editing import edit
from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import confirm, counted, emit_json, moment, notice, printable, shorten, size, span, table
from agent.errors import CannotRedact, ConfigError, InvalidRequest, OutriderError, WrongState
from agent.escalation.names import names_notice

if TYPE_CHECKING:
    from agent.cli.access import Access

OPEN_STATES = ("awaiting_approval", "pending", "leased")
STATES = (*OPEN_STATES, "succeeded", "dead", "expired", "cancelled")
PAGE_ROWS = 1000
REPLACED = "e-mail addresses, numbers and secrets are replaced unless egress is allow; "
BODIES_SHOWN = 3
HIDDEN = {"object", "lease", "lease_expires_at_ms"}  # of no use to a reader


@click.group()
def queue() -> None:
    """See and steer what waits to leave the device.

    Works over HTTP when the daemon runs, else straight on its database.
    """


@queue.command(name="list")
@click.option("--state", type=click.Choice(STATES), help="Only rows in this state.")
@click.option("--all-states", is_flag=True, help="Also rows that have ended.")
@click.option("--limit", type=click.IntRange(1, PAGE_ROWS), default=50, show_default=True)
@json_option
@pass_invocation
def list_rows(invocation: Invocation, state: str | None, all_states: bool, limit: int, as_json: bool) -> None:
    """Print the rows that wait, oldest first, and the count of each state. COST is what is expected of one send.

    Example:  outrider queue list --state awaiting_approval
    """
    from agent.cli.access import now_ms, open_access

    if state and all_states:
        raise click.UsageError("--state and --all-states contradict each other: keep one")
    wanted = (state,) if state else STATES if all_states else OPEN_STATES
    with open_access(invocation.loaded) as access:
        found = [row for name in wanted for row in access.rows(name, limit)]
        counts = access.counts()
    rows = sorted(found, key=lambda row: str(row["id"]))[:limit]
    if as_json:
        emit_json({"counts": counts, "data": rows})
        return
    now = now_ms()
    table(
        ["ID", "STATE", "WHY", "TARGET", "AGE", "COST", "ATTEMPTS", "LAST ERROR"],
        [
            (
                row["id"],
                row["state"],
                row["reason"],
                row["target"],
                span((now - row["created_at_ms"]) / 1000),
                _dollars(row["estimated_dollars"]),
                f"{row['attempts']}/{row['max_attempts']}",
                shorten(row["last_error"] or "", 40),
            )
            for row in rows
        ],
    )
    by_state = _rows_by_state(counts)
    if (more := sum(by_state.get(name, 0) for name in wanted) - len(rows)) > 0:
        notice(f"... and {more} more: --limit shows up to {PAGE_ROWS}, --state some of them")
    notice(", ".join(f"{name}: {n}" for name, n in by_state.items() if n) or "the queue is empty")
    _tell_blocked(invocation, by_state)


@queue.command()
@click.argument("row_id", metavar="ID")
@click.option("--as-sent", is_flag=True, help="Print exactly the bytes that would leave, nothing else.")
@click.option("--target", help="For a row without one: as it would go to this target.")
@json_option
@pass_invocation
def show(invocation: Invocation, row_id: str, as_sent: bool, target: str | None, as_json: bool) -> None:
    """Print one row (by its id or its request's).

    Example:  outrider queue show 0197c0de-... --as-sent
    """
    from agent.cli.access import open_access

    with open_access(invocation.loaded) as access:
        if as_sent:
            sys.stdout.buffer.write(access.as_sent(row_id, target))
            notice(REPLACED + names_notice(invocation.settings.redaction.names))
            return
        row = access.row(row_id)
    if as_json:
        emit_json(row)
        return
    table(["FIELD", "VALUE"], [(name, _readable(name, value)) for name, value in row.items() if name not in HIDDEN])


@queue.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All rows that wait for a person now; so does no ID at all.")
@click.option("--show-all", is_flag=True, help=f"Print the bytes of every row, not only of the first {BODIES_SHOWN}.")
@click.option("--target", help="Where they go. Default: the only configured target that may receive.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_invocation
def release(
    invocation: Invocation,
    ids: tuple[str, ...],
    everything: bool,
    show_all: bool,
    target: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Let rows that wait for a person leave: shows count, oldest and the bytes, then asks.

    What comes into the queue after the question was asked is not released with the answer. A row
    that is pending for a target which is not configured any more can be named, and goes to another.

    Example:  outrider queue release 0197c0de-...

    Example:  outrider queue release --all --target cloud
    """
    from agent.cli.access import now_ms, open_access

    if ids and everything:
        raise click.UsageError("name the rows to release, or say --all (not both)")
    if yes and not (ids or everything):
        raise click.UsageError("with --yes, name the rows to release or say --all")
    chosen = target or _only_target(invocation)
    with open_access(invocation.loaded) as access:
        rows = _releasable(invocation, access, ids) if ids else _awaiting_approval(access)
        count = len(rows)
        if not count:
            notice("no row waits for a person")
            if as_json:
                emit_json({"released": 0})
            return
        if not yes:
            oldest = span((now_ms() - min(row["created_at_ms"] for row in rows)) / 1000)
            notice(f"{counted(count, 'row')} would leave for {chosen}; the oldest has waited for {oldest}")
            notice(REPLACED + names_notice(invocation.settings.redaction.names))
            shown = rows if show_all else rows[:BODIES_SHOWN]
            _show_bodies(access, shown, chosen, more=count - len(shown))
            unseen = "" if len(shown) == count else f" ({count - len(shown)} of them not shown)"
            confirm(
                f"release {counted(count, 'row')}{unseen} to {chosen}?", unattended="--yes" if ids else "--all --yes"
            )
        released = access.release([row["id"] for row in rows], chosen)
        if ids and not released:
            raise WrongState(f"none was released: {_states([access.row(row['id']) for row in rows])}")
        running = access.running
    if as_json:
        emit_json({"released": released, "target": chosen})
        return
    click.echo(f"{counted(released, 'row')} released to {chosen}")
    if not running:
        notice("no daemon runs: they leave when it does, or with `outrider queue drain`")


queue.add_command(release, "approve")
queue.add_command(edit)


@queue.command()
@click.argument("row_id", metavar="ID")
@json_option
@pass_invocation
def retry(invocation: Invocation, row_id: str, as_json: bool) -> None:
    """Put a dead, expired or cancelled row back in line.

    Example:  outrider queue retry 0197c0de-...
    """
    row = _change(invocation, lambda access: access.retry(row_id), as_json=as_json)
    if row["state"] == "awaiting_approval":
        notice(f"it waits for a person ({row['reason']}): outrider queue release {row['id']}")


@queue.command()
@click.argument("row_id", metavar="ID")
@json_option
@pass_invocation
def cancel(invocation: Invocation, row_id: str, as_json: bool) -> None:
    """Take a row out of line; nothing of it leaves any more.

    Example:  outrider queue cancel 0197c0de-...
    """
    _change(invocation, lambda access: access.cancel(row_id), as_json=as_json)


@queue.command()
@click.option("--unfetched", is_flag=True, help="Also late answers that nobody has fetched yet.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_invocation
def purge(invocation: Invocation, unfetched: bool, yes: bool, as_json: bool) -> None:
    """Delete rows that have ended (succeeded, dead, expired, cancelled) and their texts.

    A late answer stays until its owner has fetched it (as `outrider requests show` does).

    Example:  outrider queue purge
    """
    from agent.cli.access import open_access

    with open_access(invocation.loaded) as access:
        waiting = access.unfetched()
        if not yes:
            ended = {name: n for name, n in _rows_by_state(access.counts()).items() if n and name not in OPEN_STATES}
            notice(", ".join(f"{name}: {n}" for name, n in ended.items()) or "no row has ended")
            if waiting:
                fate = "they go too" if unfetched else "they stay (--unfetched deletes them too)"
                notice(f"late answers that nobody has fetched: {waiting}; {fate}")
            count = sum(ended.values()) - (0 if unfetched else waiting)
            confirm(f"delete {counted(count, 'ended row')} and the texts?")
        purged = access.purge(unfetched=unfetched)
    kept = 0 if unfetched else waiting
    if as_json:
        emit_json({"purged": purged, "unfetched_kept": kept})
        return
    click.echo(f"{counted(purged, 'row')} deleted")
    if kept and yes:
        notice(f"{counted(kept, 'late answer')} stay until fetched; --unfetched deletes them too")


@queue.command()
@json_option
@pass_invocation
def drain(invocation: Invocation, as_json: bool) -> None:
    """Try the targets now instead of at the next step of the backoff.

    Returns at once when the daemon runs (it goes on sending). While it is down the rows are sent
    from here, until none is left that can go now.

    Example:  outrider queue drain
    """
    from agent.cli.access import open_access

    with open_access(invocation.loaded) as access:
        access.drain()
        counts = access.counts()
    if as_json:
        emit_json({"counts": counts})
        return
    waiting = _rows_by_state(counts)
    click.echo(f"{counted(waiting.get('pending', 0) + waiting.get('leased', 0), 'row')} in line")
    if held := waiting.get("awaiting_approval", 0):
        notice(f"{held} more wait for a person: outrider queue release")
    _tell_blocked(invocation, waiting)


def _tell_blocked(invocation: Invocation, by_state: Mapping[str, int]) -> None:
    """Say which targets are blocked and why, where rows wait for one."""
    from agent.cli.target import standing

    if by_state.get("pending"):
        for name, one in standing(invocation).items():
            if one["state"] == "blocked":
                notice(f"target {name} is blocked: {one['reason']}")


def _only_target(invocation: Invocation) -> str:
    able = [one.name for one in invocation.settings.targets if one.egress != "never"]
    if len(able) == 1:
        return able[0]
    if not able:
        raise ConfigError("there is no target to release to: add one with `outrider target add`")
    raise InvalidRequest(f"say where to: --target {' or --target '.join(able)}", param="target")


def _awaiting_approval(access: Access) -> list[dict[str, Any]]:
    """Return every row that waits for a person, oldest first."""
    rows: list[dict[str, Any]] = []
    while page := access.rows("awaiting_approval", PAGE_ROWS, after=rows[-1]["id"] if rows else None):
        rows += page
    return rows


def _releasable(invocation: Invocation, access: Access, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return the named rows that a person may release; tell the state of the others. Raises WrongState for none."""
    configured = {target.name for target in invocation.settings.targets}
    rows = [access.row(row_id) for row_id in dict.fromkeys(ids)]
    able = [
        row
        for row in rows
        if row["state"] == "awaiting_approval" or (row["state"] == "pending" and row["target"] not in configured)
    ]
    others = [row for row in rows if row not in able]
    if not able:
        raise WrongState(f"none of these rows waits for a person: {_states(others)}")
    if others:
        notice(f"left alone, they do not wait for a person: {_states(others)}")
    return able


def _states(rows: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"{row['id']} is {row['state']}" for row in rows)


def _show_bodies(access: Access, rows: Sequence[dict[str, Any]], target: str, *, more: int) -> None:
    for row in rows:
        try:
            body = access.as_sent(row["id"], target)
        except OutriderError as error:
            if error.code != CannotRedact.code:
                raise
            notice(f"--- {row['id']} will not leave, released or not: {error}")
            continue
        notice(f"--- {row['id']}, {size(len(body))}, as it would leave:")
        notice(printable(body.decode("utf-8", "replace")))
    if more > 0:
        notice(f"--- and {more} more, not shown: --show-all prints them all, and one at a time")
        notice(f"--- outrider queue show ID --as-sent --target {target}")


def _dollars(amount: str | None) -> str:
    from decimal import Decimal

    from agent.escalation.prices import written

    return written(None if amount is None else Decimal(amount))


def _change(invocation: Invocation, change: Callable[[Access], dict[str, Any]], *, as_json: bool) -> dict[str, Any]:
    """Change a row, tell its state, and return it."""
    from agent.cli.access import open_access

    with open_access(invocation.loaded) as access:
        row = change(access)
    if as_json:
        emit_json(row)
    else:
        click.echo(f"{row['id']} is {row['state']}")
    return row


def _rows_by_state(counts: dict[str, Any]) -> dict[str, int]:
    return {name: int(value["rows"]) for name, value in counts.items() if isinstance(value, dict)}


def _readable(name: str, value: Any) -> object:
    return moment(value) if name.endswith("_at_ms") and isinstance(value, int) else value
