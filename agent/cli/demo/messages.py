"""The demo's field messages: those that teach and certify the task, and the forty that it sorts. Written for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

TAUGHT = Path(__file__).with_name("taught.jsonl")
FIELD = Path(__file__).with_name("field.jsonl")
TASK = "field"
KINDS = {
    "injury": "somebody is hurt or ill",
    "leak": "water where it should not be",
    "power": "electricity: outages, lines, transformers, fuses",
    "radio": "radios, phones, data links",
    "reading": "figures that were read or measured",
    "schedule": "times, delays, appointments",
    "supplies": "something is to be brought or ordered",
    "vehicle": "vans, lorries, diggers, boats",
}


class Message(NamedTuple):
    """One of the forty."""

    text: str
    kind: str  # what it is, as its author says; the task does not see this
    egress: str | None  # the policy that it is sent with


def field_messages() -> list[Message]:
    """Return the forty messages in their order."""
    lines = FIELD.read_text(encoding="utf-8").splitlines()
    found = map(json.loads, lines)
    return [Message(one["input"], one["label"], one.get("egress")) for one in found]
