"""The content of a message: a text, or a list of parts, of which some may be images, audio, video or files.

Only text is for the local models. The other parts are kept as they came, for a target; whether
there is one that may be asked is a question of the route.
"""

from __future__ import annotations

import json
from typing import Any

from agent.api.fields import Fields
from agent.errors import InvalidRequest

MOST_PARTS = 256
# Type of a part -> the keys of its object, of which one must be there.
MEDIA = {
    "image_url": ("url",),
    "input_audio": ("data",),
    "audio_url": ("url",),
    "video_url": ("url",),
    "file": ("file_data", "file_id"),
}


def parse_content(fields: Fields, *, media: bool) -> tuple[str | None, str]:
    """Take ``content``; return its text, and the JSON of all parts where one is no text.

    ``media``: whether this message may have such parts. Raises InvalidRequest that names the part.
    """
    content = fields.take("content")
    if content is None or isinstance(content, str):
        return content, ""
    if not isinstance(content, list) or not content:
        raise fields.wrong_type("content", "a string or a list of parts")
    if len(content) > MOST_PARTS:
        raise fields.wrong_value("content", f"must have at most {MOST_PARTS} parts")
    texts = []
    has_media = False
    for index, item in enumerate(content):
        where = f"content[{index}]"
        if not isinstance(item, dict):
            raise fields.wrong_type(where, "an object")
        part = Fields(item, fields.path(where))
        kind = part.text("type", 64)
        if kind in MEDIA and media:
            _check_media(part, kind)
            has_media = True
        elif kind == "text":
            texts.append(_text(part))
        else:
            raise InvalidRequest(
                f"{part.path('type')} must be text{', or ' + ', '.join(MEDIA) if media else ' in this message'}",
                param=part.path("type"),
                code="unsupported_parameter",
            )
    return "\n".join(texts), json.dumps(content, ensure_ascii=False) if has_media else ""


def _text(part: Fields) -> str:
    text: Any = part.take("text")
    if not isinstance(text, str):
        raise part.wrong_type("text", "a string")
    part.only("prompt_cache_breakpoint")
    part.finish()
    return text


def _check_media(part: Fields, kind: str) -> None:
    """Check only that there is something to read: the rest is the target's business."""
    inner = part.nested(kind)
    if inner is None:
        raise part.missing(kind)
    if not any(isinstance(inner.take(key), str) and inner.take(key) for key in MEDIA[kind]):
        raise inner.missing(MEDIA[kind][0])
