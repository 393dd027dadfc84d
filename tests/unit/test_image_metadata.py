import struct
import zlib

import pytest

from agent.escalation.image_metadata import without_metadata

NEEDLE = b"52.5200,13.4050 by Bob"


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*extra):
    picture = chunk(b"IDAT", zlib.compress(b"\0\0\0\0"))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + picture + chunk(b"IEND", b"")


def segment(marker, data):
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def jpeg(*extra, between=b""):
    """An image of two scans, as a progressive one has; with stuffed bytes and a restart in its coded data."""
    scan = segment(0xDA, b"\x01\x01\x00\x00?\x00") + b"\x12\xff\x00\x34\xff\xd0\x56"
    head = b"\xff\xd8" + segment(0xE0, b"JFIF\0") + b"".join(extra) + segment(0xDB, b"\0" * 65)
    return head + scan + between + segment(0xC4, b"\0" * 20) + scan + b"\xff\xd9"


def piece(kind, data):
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def webp(flags, *extra):
    body = b"WEBP" + piece(b"VP8X", bytes([flags]) + b"\0" * 9) + piece(b"VP8 ", b"picture") + b"".join(extra)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    ("image", "clean"),
    [
        (png(), png()),
        (png(chunk(b"eXIf", NEEDLE), chunk(b"tEXt", NEEDLE), chunk(b"iTXt", NEEDLE)), png()),
        (png() + NEEDLE, png()),
        (jpeg(), jpeg()),
        (jpeg(segment(0xE1, b"Exif\0\0" + NEEDLE), segment(0xED, NEEDLE), segment(0xFE, NEEDLE)), jpeg()),
        (jpeg() + NEEDLE, jpeg()),
        (jpeg() + jpeg(segment(0xE1, b"Exif\0\0" + NEEDLE)), jpeg()),  # a preview behind the picture
        (jpeg(between=segment(0xFE, NEEDLE)), jpeg()),
        (jpeg(segment(0xE0, b"JFXX\0\x13" + NEEDLE), segment(0xE0, b"JFIF\0" + b"\1" * 9 + NEEDLE)), jpeg()),
        (webp(0b10), webp(0b10)),
        (webp(0b1110, piece(b"EXIF", NEEDLE), piece(b"XMP ", NEEDLE), piece(b"note", NEEDLE)), webp(0b10)),
    ],
)
def test_what_a_file_tells_beside_the_picture_is_gone(image, clean):
    assert without_metadata(image) == clean
    assert NEEDLE not in clean


@pytest.mark.parametrize(
    "image", [b"", b"GIF89a", b"\xff\xd8", b"\xff\xd8\xff", b"RIFF\x10\0\0\0WEBP", jpeg()[:-3], png()[:40], png()[:-1]]
)
def test_a_broken_or_unknown_file_is_refused(image):
    with pytest.raises(ValueError, match="it "):
        without_metadata(image)


def test_any_bytes_end_in_a_picture_or_a_clear_no():
    for whole in (png(chunk(b"eXIf", NEEDLE)), jpeg(segment(0xE1, NEEDLE)), webp(0b100, piece(b"EXIF", NEEDLE))):
        for at in range(len(whole)):
            for broken in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :]):
                try:
                    without_metadata(broken)
                except ValueError:
                    continue
