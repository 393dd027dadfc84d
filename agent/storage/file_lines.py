"""Lines of uploaded files: found by whose they are, and written over with blanks where they stand.

Nothing reads an uploaded file before a batch does, so it is looked through, a piece at a time. Its length and
the numbers of its lines stay: a batch passes over blank lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import msgspec

from agent.storage import batch_schema as sql
from agent.storage.connection import Connection
from agent.storage.database import Database
from agent.storage.subjects import names_in

LONGEST_LINE = 16 << 20  # what is longer is no call of the API, whose bodies are far shorter
_FILES = "SELECT id FROM files WHERE ready = 1 AND batch_id IS NULL ORDER BY id"
_PIECE_PUT = "UPDATE file_chunks SET body = :body WHERE file_id = :id AND number = :number"
_FORGET_SUM = "UPDATE files SET sha256 = '' WHERE id = :id"  # the content is not that of its Idempotency-Key any more


class Span(NamedTuple):
    """Bytes of a file, from the first to the one after the last."""

    start: int
    end: int


class _Line(msgspec.Struct):
    body: Any = None


def is_of(raw: bytes, subject: str) -> bool:
    """Whether a line of a batch's input names this person."""
    try:
        body = msgspec.json.decode(raw, type=_Line).body
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return isinstance(body, dict) and subject in names_in(body)


async def files(db: Database) -> list[str]:
    """Return the ids of the uploaded files."""
    found = await db.read(lambda connection: connection.execute(_FILES).fetchall())
    return [row["id"] for row in found]


async def spans(db: Database, file_id: str, wanted: Callable[[bytes], bool]) -> list[Span]:
    """Return where the lines lie that are ``wanted``."""
    found: list[Span] = []
    lines = _Lines()
    number = 0
    while (piece := await _piece(db, file_id, number)) is not None:
        found += [span for span, line in lines.feed(piece) if wanted(line)]
        number += 1
    found += [span for span, line in lines.rest() if wanted(line)]
    return found


async def blank(db: Database, file_id: str, found: list[Span]) -> None:
    """Write blanks over these bytes. The same call again finishes one that was cut short."""
    start = number = 0
    while found and (piece := await _piece(db, file_id, number)) is not None:
        inside = [Span(max(s, start) - start, min(e, start + len(piece)) - start) for s, e in found]
        if inside := [span for span in inside if span.start < span.end]:
            body = bytearray(piece)
            for span in inside:
                body[span.start : span.end] = b" " * (span.end - span.start)
            values = {"id": file_id, "number": number, "body": bytes(body)}
            await db.write(partial(_put, values=values))
        start += len(piece)
        number += 1


def _put(connection: Connection, values: dict[str, object]) -> None:
    connection.execute(_PIECE_PUT, values)
    connection.execute(_FORGET_SUM, {"id": values["id"]})


async def _piece(db: Database, file_id: str, number: int) -> bytes | None:
    values = {"id": file_id, "number": number}
    row = await db.read(lambda connection: connection.execute(sql.FILE_READ, values).fetchone())
    return None if row is None else bytes(row["body"])


class _Lines:
    """Cuts pieces into lines and says where each lies."""

    def __init__(self) -> None:
        self._begun = bytearray()
        self._start = 0  # of the line that is begun
        self._read = 0
        self._too_long = False

    def feed(self, piece: bytes) -> Iterator[tuple[Span, bytes]]:
        at = 0
        while (end := piece.find(b"\n", at)) >= 0:
            yield from self._line(piece[at:end], self._read + end)
            self._start = self._read + end + 1
            at = end + 1
        self._add(piece[at:])
        self._read += len(piece)

    def rest(self) -> Iterator[tuple[Span, bytes]]:
        yield from self._line(b"", self._read)

    def _add(self, part: bytes) -> None:
        self._too_long = self._too_long or len(self._begun) + len(part) > LONGEST_LINE
        self._begun += b"" if self._too_long else part

    def _line(self, last: bytes, end: int) -> Iterator[tuple[Span, bytes]]:
        self._add(last)
        if self._begun and not self._too_long:
            yield Span(self._start, end), bytes(self._begun)
        self._begun.clear()
        self._too_long = False
