"""``multipart/form-data`` (RFC 7578) as it arrives: no part is held whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from email.parser import HeaderParser

import msgspec

from agent.errors import InvalidRequest, UnsupportedMediaType

LONGEST_HEADERS = 8 << 10  # bytes of one part's headers
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=?-]{1,70}")


class Part(msgspec.Struct, frozen=True):
    """The beginning of a part; its bytes follow."""

    name: str
    filename: str | None


def boundary_of(content_type: str) -> bytes:
    """Return the boundary of a content type. Raises UnsupportedMediaType for any other than multipart/form-data."""
    message = HeaderParser().parsestr(f"content-type: {content_type}\n\n")
    boundary = message.get_param("boundary", header="content-type")
    if message.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
        raise UnsupportedMediaType("the body must have the content type multipart/form-data, with a boundary")
    if not _BOUNDARY.fullmatch(boundary):
        raise InvalidRequest("the boundary of the body is not one", code="invalid_multipart")
    return boundary.encode("ascii")


class MultipartReader:
    """Turns bytes, cut anywhere, into parts and the pieces of their bodies. Raises InvalidRequest."""

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._buffer = b"\r\n"  # so that the first delimiter is like the others
        self._state = "before"

    @property
    def ended(self) -> bool:
        """Whether the last delimiter was there."""
        return self._state == "after"

    def feed(self, data: bytes) -> Iterator[Part | bytes]:
        """Yield what is known with these bytes."""
        self._buffer += data
        while self._state != "after":
            found = self._headers() if self._state == "headers" else self._body()
            if found is None:
                return
            if found:
                yield found
        self._buffer = b""

    def _headers(self) -> Part | None:
        at = self._buffer.find(b"\r\n\r\n")
        if at < 0:
            if len(self._buffer) > LONGEST_HEADERS:
                raise InvalidRequest("a part of the body has too long headers", code="invalid_multipart")
            return None
        told = HeaderParser().parsestr(self._buffer[:at].decode("utf-8", "replace") + "\n\n")
        self._buffer = self._buffer[at + 4 :]
        name = told.get_param("name", header="content-disposition")
        if told.get_content_disposition() != "form-data" or not isinstance(name, str):
            raise InvalidRequest("a part of the body has no name", code="invalid_multipart")
        self._state = "body"
        return Part(name, told.get_filename())

    def _body(self) -> bytes | None:
        """Return a piece, which may be empty, or None when more bytes are needed."""
        at = self._buffer.find(self._delimiter)
        if at < 0:
            keep = len(self._delimiter) - 1
            piece, self._buffer = self._buffer[:-keep], self._buffer[-keep:]
            return (piece if self._state == "body" else b"") or None
        piece, rest = self._buffer[:at], self._buffer[at + len(self._delimiter) :]
        if len(rest) < 2:
            self._buffer = self._buffer[at:]
            return (piece if self._state == "body" else b"") or None
        state = {b"\r\n": "headers", b"--": "after"}.get(rest[:2])
        if state is None:
            raise InvalidRequest("a delimiter of the body is followed by something else", code="invalid_multipart")
        was, self._state, self._buffer = self._state, state, rest[2:]
        return piece if was == "body" else b""
