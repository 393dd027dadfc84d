"""A picture without what its file tells beside the picture: place, time, device, owner. Pure.

Only whole segments and chunks are left out (JPEG: ITU-T T.81 annex B; PNG: W3C PNG, 11.3; WebP: RFC 9649);
the picture itself is not decoded and stays bit for bit.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PICTURE = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD", b"pHYs", b"acTL", b"fcTL", b"fdAT", b"cICP"}  # fmt: skip
_JPEG_JFIF, _JPEG_COLOURS = 0xE0, 0xEE  # of all APPn these stay: JFIF without a thumbnail, Adobe's note on colours
_LONGEST_JFIF = 16  # bytes; what is longer brings a second, small picture
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # in coded data: not a stuffed byte, a restart or filling
_WEBP_PICTURE = {b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"ICCP"}
_WEBP_FLAGS = 0b0000_1100  # of VP8X: there is EXIF, there is XMP


def without_metadata(image: bytes) -> bytes:
    """Return the image's file without metadata. Raises ValueError for another kind of file, or a broken one."""
    if image.startswith(_PNG):
        return _PNG + b"".join(_png_chunks(image))
    if image.startswith(b"\xff\xd8"):
        return b"\xff\xd8" + b"".join(_jpeg_segments(image))
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        body = b"WEBP" + b"".join(_webp_chunks(image))
        return b"RIFF" + struct.pack("<I", len(body)) + body
    raise ValueError("it is no PNG, JPEG or WebP")


def _png_chunks(image: bytes) -> Iterator[bytes]:
    at = len(_PNG)
    while at < len(image):
        if at + 12 > len(image):
            raise ValueError("it ends within a chunk")
        (length,) = struct.unpack_from(">I", image, at)
        kind, end = image[at + 4 : at + 8], at + 12 + length
        if end > len(image):
            raise ValueError("it ends within a chunk")
        if kind in _PNG_PICTURE:
            yield image[at:end]
        if kind == b"IEND":
            return  # what follows belongs to no picture
        at = end


def _jpeg_segments(image: bytes) -> Iterator[bytes]:
    at = 2
    while True:
        if at + 4 > len(image) or image[at] != 0xFF:
            raise ValueError("it ends within a segment")
        marker = image[at + 1]
        if marker == 0xFF:  # filling
            at += 1
            continue
        (length,) = struct.unpack_from(">H", image, at + 2)
        end = at + 2 + length
        if length < 2 or end > len(image):
            raise ValueError("it ends within a segment")
        if marker == 0xDA:  # coded data follows, up to the next marker
            found = _JPEG_MARKER.search(image, end)
            if found is None:
                raise ValueError("it has no end")
            end = found.start()
        if _stays(marker, length):
            yield image[at:end]
        if image[end : end + 2] == b"\xff\xd9":
            yield b"\xff\xd9"
            return  # what follows belongs to no picture, or to another one
        at = end


def _stays(marker: int, length: int) -> bool:
    if marker == _JPEG_JFIF:
        return length <= _LONGEST_JFIF
    return marker == _JPEG_COLOURS or not (0xE0 <= marker <= 0xEF or marker == 0xFE)


def _webp_chunks(image: bytes) -> Iterator[bytes]:
    at, whole = 12, 8 + struct.unpack_from("<I", image, 4)[0]
    while at < whole:
        if at + 8 > len(image):
            raise ValueError("it ends within a chunk")
        kind, (length,) = image[at : at + 4], struct.unpack_from("<I", image, at + 4)
        end = at + 8 + length + length % 2
        if end > len(image):
            raise ValueError("it ends within a chunk")
        if kind == b"VP8X" and length:
            yield image[at : at + 8] + bytes([image[at + 8] & ~_WEBP_FLAGS]) + image[at + 9 : end]
        elif kind in _WEBP_PICTURE:
            yield image[at:end]
        at = end
