"""``outrider egress``: the record of what has left this device."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import counted, emit_json, moment, notice, size, table
from agent.errors import ConfigError, InvalidRequest, StorageCorrupt

if TYPE_CHECKING:
    from agent.cli.access import Access

DAY_MS = 86_400_000


@click.group()
def egress() -> None:
    """See what has left the device.

    One line per send: when, where, how many bytes and their SHA-256, by which policy, and what was
    replaced before. The texts are not in it. Each line is tied to the one before by an HMAC.
    """


@egress.command(name="list")
@click.option("--days", type=click.FloatRange(0, 36_500), default=30.0, show_default=True, help="How far back.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@json_option
@pass_invocation
def list_lines(invocation: Invocation, days: float, limit: int, as_json: bool) -> None:
    """Print what has left, newest first.

    Example:  outrider egress list --days 1
    """
    from agent.cli.access import now_ms, open_access

    since_ms = max(0, now_ms() - int(days * DAY_MS))
    with open_access(invocation.loaded) as access:
        found = access.egress(since_ms, limit)
    if as_json:
        emit_json(found)
        return
    table(
        ["WHEN", "TARGET", "BYTES", "POLICY", "REPLACED", "OUTCOME", "REQUEST", "SHA-256"],
        [
            (
                moment(row["at_ms"]),
                row["target"],
                row["bytes"],
                row["policy"],
                _replaced(row["redactions"]),
                row["outcome"],
                row["request_id"],
                row["body_sha256"][:16],
            )
            for row in found["data"]
        ],
    )
    totals = found["totals"]
    notice(f"left the device in {days:g} days: {counted(totals['rows'], 'send')}, {size(totals['bytes'])}")


@egress.command()
@json_option
@pass_invocation
def today(invocation: Invocation, as_json: bool) -> None:
    """Say in one line what has left since midnight: "nothing", or "3 rows, 4.1 kB, to main".

    Example:  outrider egress today
    """
    from agent.cli.access import open_access

    midnight = datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
    with open_access(invocation.loaded) as access:
        totals = access.egress(round(midnight.timestamp() * 1000), 1)["totals"]
    if as_json:
        emit_json(totals)
        return
    if not totals["rows"]:
        click.echo("nothing")
        return
    names = ", ".join(sorted(totals["by_target"]))
    click.echo(f"{counted(totals['rows'], 'row')}, {_decimal_size(totals['bytes'])}, to {names}")


@egress.command()
@click.option(
    "--against",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="An earlier `egress export` (JSON lines): also check that the log still goes on from it.",
)
@json_option
@pass_invocation
def verify(invocation: Invocation, against: Path | None, as_json: bool) -> int:
    """Check that no line of the log was changed, moved or taken out, and name the first that is not right.

    Exit code 74 when the log is broken. A log that was cut off and made anew by somebody with the
    key shows only against a copy that was kept elsewhere: --against.

    Example:  outrider egress verify
    """
    from agent.cli.access import open_access

    kept = _last_kept(against) if against else None
    with open_access(invocation.loaded) as access:
        found = access.verify_egress()
        if found["whole"] and kept is not None:
            here = access.egress_page(kept[0] - 1)[:1]
            if [(line["id"], line["mac"]) for line in here] != [kept]:
                found |= {"whole": False, "first_bad_id": kept[0]}
    bad_id = found["first_bad_id"]
    if as_json:
        emit_json(found)
    elif bad_id is not None:
        click.echo(f"the log is BROKEN from entry {bad_id} on")
    else:
        click.echo(f"the log is whole: {counted(found['head']['rows'], 'entry').replace('entrys', 'entries')}")
        if found["head"]["mac"]:
            notice(f"its head: {found['head']['mac']}")
    return 0 if bad_id is None else StorageCorrupt.exit_code


@egress.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True)
@json_option
@pass_invocation
def export(invocation: Invocation, file: Path | None, form: str, as_json: bool) -> None:
    """Write the whole log, oldest first, to FILE (a new one, mode 0600) or to stdout.

    JSON lines carry each line's MAC: kept elsewhere, they are what `egress verify --against` needs.
    With --json: one JSON list, or where it was written.

    Example:  outrider egress export log.jsonl
    """
    from agent.cli.access import open_access

    with open_access(invocation.loaded) as access:
        text = _written(_lines(access), form)
        if file is None:
            if as_json:
                emit_json([*_lines(access)])
                return
            for piece in text:
                sys.stdout.write(piece)
            return
        try:
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as out:
                    out.writelines(text)
            except BaseException:
                file.unlink(missing_ok=True)  # a part of the log would pass for the whole of it
                raise
        except OSError as error:
            raise ConfigError(f"{file} cannot be written: {error.strerror}") from error
    if as_json:
        emit_json({"path": str(file)})
    notice(f"the log is in {file}")


@egress.command()
@json_option
@pass_invocation
def off(invocation: Invocation, as_json: bool) -> None:
    """Let nothing leave from now on, whatever requests and targets say (air gap).

    Sets egress.policy = "never" in outrider.toml and tells a running daemon: no target is sent to or
    probed any more. Rows that no person has released wait for one then.

    Example:  outrider egress off
    """
    _set_policy(invocation, "never", as_json=as_json)


@egress.command()
@click.option(
    "--policy",
    type=click.Choice(["approve", "redact", "allow"]),
    default="allow",
    show_default=True,
    help="The loosest policy that targets and requests may have.",
)
@json_option
@pass_invocation
def on(invocation: Invocation, policy: str, as_json: bool) -> None:
    """Let leave again what targets and requests allow, at most under --policy.

    Rows that `egress off` put before a person stay there: `outrider queue release` shows and frees them.

    Example:  outrider egress on
    """
    _set_policy(invocation, policy, as_json=as_json)


def _set_policy(invocation: Invocation, policy: str, *, as_json: bool) -> None:
    from agent.cli.config_file import set_config_value
    from agent.cli.target import reload_daemon

    path = invocation.loaded.path
    set_config_value(path, "egress", "policy", policy)
    held = reload_daemon(invocation)
    if as_json:
        emit_json({"policy": policy, "path": str(path), "applied": held == policy})
        return
    taken = "; the daemon has taken it over" if held == policy else ""
    click.echo(f"egress.policy is {policy} in {path}{taken}")
    if held not in {None, policy}:
        notice(f"the daemon keeps {held}: it was started with that in its environment or as a flag")


def _lines(access: Access) -> Iterator[dict[str, Any]]:
    after_id = 0
    while page := access.egress_page(after_id):
        yield from page
        after_id = page[-1]["id"]


def _written(lines: Iterator[dict[str, Any]], form: str) -> Iterator[str]:
    if form == "jsonl":
        for line in lines:
            yield json.dumps(line) + "\n"
        return
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    header: list[str] | None = None
    for line in lines:
        if header is None:
            header = [*line]
            writer.writerow(header)
        writer.writerow([json.dumps(value) if isinstance(value, dict) else value for value in line.values()])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


def _last_kept(path: Path) -> tuple[int, str] | None:
    """Return the number and the MAC of the last line of an export. Raises InvalidRequest when it is none."""
    import msgspec

    class Line(msgspec.Struct):
        id: int
        mac: str

    try:
        lines = path.read_bytes().splitlines()
        last = msgspec.json.decode(lines[-1], type=Line) if lines else None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} is no export of the log (JSON lines)") from error
    return (last.id, last.mac) if last else None


def _replaced(kinds: dict[str, int] | None) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in (kinds or {}).items())


def _decimal_size(count: int) -> str:
    """Return bytes in decimal units: 512 B, 4.1 kB, 1.2 MB."""
    if count < 1000:
        return f"{count} B"
    amount = float(count)
    for unit in ("kB", "MB", "GB"):
        amount /= 1000
        if amount < 1000:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1000:.1f} TB"
