"""From the body and headers of ``POST /v1/classify`` to an InferenceRequest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers

from agent.api.call import Call
from agent.api.chat_request import parse_messages
from agent.api.envelope import Envelope
from agent.api.fields import Fields
from agent.api.task_request import task_name
from agent.classification import sorting
from agent.settings import RoutingSettings, ServerSettings
from agent.tasks import FEWEST_LABELS, MOST_LABELS, label_fault
from agent.types import InferenceRequest, Message, RequestKind


def parse_classify(
    body: Mapping[str, Any], headers: Headers, *, server: ServerSettings, routing: RoutingSettings, now_ms: int
) -> Call:
    """Check every parameter and return the call (see Parser).

    ``input`` is a text to sort; ``messages`` are a prompt of the caller's own, whose last
    message is what is sorted. Without ``labels`` those of the model hold, if it has any. A
    ``task`` brings its labels and prompt itself (see task_request).
    """
    fields = Fields(body)
    call = Envelope(fields, body, headers)
    labels = _labels(fields)
    text = fields.text("input", server.max_body_bytes)
    if (fields.take("task") or task_name(body)) and (labels or text is None):
        raise fields.wrong_value("labels", "are the task's own: leave them out") if labels else fields.missing("input")
    if text is None:
        messages = _own_prompt(fields, server.max_messages)
    else:
        if fields.take("messages") is not None:
            raise fields.wrong_value("messages", "and input are both given: keep one")
        messages = (Message("user", text),) if not labels else sorting(text, labels)
    fields.only("stream", False)
    fields.finish()
    asked = InferenceRequest(
        id="", model="", received_at_ms=0, kind=RequestKind.CLASSIFY, messages=messages, labels=labels
    )
    return Call((call.request(asked, server=server, routing=routing, now_ms=now_ms),))


def _labels(fields: Fields) -> tuple[str, ...]:
    items = fields.array("labels", MOST_LABELS)
    if items is None:
        return ()
    if len(items) < FEWEST_LABELS:
        raise fields.wrong_value("labels", f"must have at least {FEWEST_LABELS} labels")
    for index, item in enumerate(items):
        if not isinstance(item, str):
            raise fields.wrong_type(f"labels[{index}]", "a string")
        if rule := label_fault(item):
            raise fields.wrong_value(f"labels[{index}]", rule)
    if len({item.casefold() for item in items}) != len(items):
        raise fields.wrong_value("labels", "must differ from each other by more than upper and lower case")
    return tuple(items)


def _own_prompt(fields: Fields, most: int) -> tuple[Message, ...]:
    if fields.take("messages") is None:
        raise fields.missing("input")
    messages = parse_messages(fields, most)
    if messages[-1].role != "user":
        raise fields.wrong_value("messages", "must end with a user message: it is what is sorted")
    return messages
