"""Printing: JSON or tables on stdout, notices on stderr. rich is imported only for a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click

DECLINED = 1  # exit code of a question answered with no
UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))


def emit_json(value: Any) -> None:
    """Print one JSON value, indented. msgspec structs are allowed inside."""
    click.echo(json.dumps(_plain(value), indent=2, ensure_ascii=False))


def emit_json_line(value: Any) -> None:
    """Print one JSON value on one line, at once (for streams)."""
    click.echo(json.dumps(_plain(value), ensure_ascii=False))


def _plain(value: Any) -> Any:
    import msgspec

    return msgspec.to_builtins(value)


def notice(text: str) -> None:
    """Tell a person something that is not data."""
    click.echo(text, err=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under headings. Piped output is plain text without colours, never cut."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=10_000)
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(_cell(value)) for value in row))
    with console.capture() as captured:
        console.print(drawn)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _cell(value: object) -> str:
    return "-" if value is None or value == "" else printable(str(value))


def printable(text: str) -> str:
    """Return text without the control characters that could steer a terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)


def moment(at_ms: int | None) -> str:
    """Return a moment in local time, to the second."""
    if at_ms is None:
        return "-"
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def span(seconds: float) -> str:
    """Return a span in its largest whole unit: 45 s, 12 min, 3 h, 5 d."""
    for size, unit in UNITS:
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"


def size(count: float) -> str:
    """Return bytes in binary units: 512 B, 4.0 KiB, 1.2 MiB."""
    if count < 1024:
        return f"{int(count)} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} TiB"


def counted(count: int, noun: str) -> str:
    """Return ``1 row``, ``2 rows``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def confirm(question: str, *, unattended: str = "--yes") -> None:
    """Go on only after a yes. A no, or nobody to answer, ends the command with exit code 1.

    ``unattended``: the option that says it where nobody can answer.
    """
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        notice("")
        agreed = False
    if not agreed:
        notice(f"outrider: nothing was changed; say {unattended} where nobody can answer")
        raise click.exceptions.Exit(DECLINED)


def shorten(text: str, width: int = 60) -> str:
    """Return text on one line, cut with an ellipsis when longer than ``width``."""
    line = " ".join(printable(text).split())
    return line if len(line) <= width else line[: width - 1] + "…"
