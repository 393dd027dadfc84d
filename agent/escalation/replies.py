"""The outcome table: what a reply of an OpenAI-compatible target means. Pure.

| Seen                                              | Outcome          |
|---------------------------------------------------|------------------|
| 200 with usable content                           | Delivered        |
| 200, but the answer is empty, refused or filtered | Rejected         |
| 200, but the choice is none of the labels         | Rejected         |
| 200, but the answer or a call does not validate   | Rejected         |
| 200 with "choices" that cannot be read            | Rejected         |
| any other 200; 3xx; 511                           | Offline (portal) |
| 202, or an Outrider's "queued"                    | Held             |
| an Outrider's "uncertain", unresolved, loop (508) | Rejected         |
| 401, 402, 403, 404, 429 insufficient_quota        | Blocked          |
| 403 with a code about content or policy           | Rejected         |
| other 429; 503 with Retry-After                   | RateLimited      |
| 408, 409, other 5xx (Retry-After: not before)     | Retry            |
| any other 4xx                                     | Rejected         |

Reasons hold codes that the target names, never its messages: those may quote the prompt.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from agent.escalation.handoff import effective, read_label, read_verdict
from agent.escalation.target import (
    UNCOUNTED,
    Blocked,
    Delivered,
    Held,
    Offline,
    Online,
    Outcome,
    ProbeOutcome,
    RateLimited,
    Rejected,
    Retry,
)
from agent.records import CloudAnswer, Escalation, RequestRecord
from agent.storage.costs import Used
from agent.structure import FormatKind, OutputFormat, ToolCall, Tools
from agent.types import Handoff

LONGEST_RETRY_AFTER_MS = 24 * 3_600_000
BLOCKING = {
    401: "the API key is refused",
    402: "payment is required",
    403: "the API key may not do this",
    404: "no such address or model there",
}
_MOST_TOKENS = 1 << 40
_ABOUT_CONTENT = re.compile(r"content|policy|moderation|safety", re.IGNORECASE)  # in codes of a 403
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class HttpReply(msgspec.Struct, frozen=True):
    """A whole reply, or its beginning when the status is an error. Header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Function(msgspec.Struct):
    name: str
    arguments: str = "{}"


class _Call(msgspec.Struct):
    id: str
    function: _Function


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Outrider(msgspec.Struct):
    decision: str | None = None
    state: str | None = None
    reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    model: str | None = None
    usage: Any = None  # figures for the record: nothing in there costs an answer
    outrider: _Outrider | None = None


class _HasChoices(msgspec.Struct):
    choices: msgspec.Raw


class _ErrorDetail(msgspec.Struct):
    code: str | int | None = None
    type: str | None = None


class _Error(msgspec.Struct):
    error: _ErrorDetail


class _ModelList(msgspec.Struct):
    data: list[msgspec.Raw]


_HAS_CHOICES = msgspec.json.Decoder(_HasChoices)
_COMPLETION = msgspec.json.Decoder(_Completion)
_ERROR = msgspec.json.Decoder(_Error)
_MODEL_LIST = msgspec.json.Decoder(_ModelList)
# msgspec.DecodeError covers broken JSON and wrong types; the others are what hostile JSON can also bring.
_NOT_THAT_JSON = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


def read_reply(reply: HttpReply, record: RequestRecord, row: Escalation, *, now_ms: int) -> Outcome:
    """Return the outcome of a send that was replied to."""
    match reply.status:
        case 200:
            return _read_answer(reply, record, row)
        case 202:
            return Held("the target has queued it")
        case status if _is_portal(status):
            return Offline(_portal_reason(reply), left=True, portal=True)
        case 403 if _ABOUT_CONTENT.search(_error_code(reply) or ""):
            return Rejected(_with_code("403", reply))
        case status if status in BLOCKING:
            return Blocked(_with_code(f"{status}: {BLOCKING[status]}", reply))
        case 429 if _error_code(reply) == "insufficient_quota":
            return Blocked("429: insufficient_quota")
        case 429:
            return RateLimited(_with_code("429", reply), retry_after(reply.headers, now_ms))
        case 503 if (until_ms := retry_after(reply.headers, now_ms)) is not None:
            return RateLimited("503: asks to come back later", until_ms)
        case 508 if _error_code(reply) == "too_many_hops":
            return Rejected("508: too_many_hops")
        case status if status in {408, 409} or status >= 500:
            return Retry(_with_code(str(status), reply), until_ms=retry_after(reply.headers, now_ms))
        case status:
            return Rejected(_with_code(str(status), reply))


def read_probe(reply: HttpReply, *, now_ms: int) -> ProbeOutcome:
    """Return what the reply to ``GET /models`` says of the target."""
    status = reply.status
    if status == 200:
        try:
            _MODEL_LIST.decode(reply.body)
        except _NOT_THAT_JSON:
            return Offline("200, but not a list of models: something else answers", portal=True)
        return Online()
    if _is_portal(status):
        return Offline(_portal_reason(reply), portal=True)
    if status == 404:
        return Blocked("404 at /models: base_url must be that of an OpenAI API, usually ending in /v1", left=False)
    if status == 429 and _error_code(reply) != "insufficient_quota":
        return RateLimited("429", retry_after(reply.headers, now_ms), left=False)
    if status == 503 and (until_ms := retry_after(reply.headers, now_ms)) is not None:
        return RateLimited("503: asks to come back later", until_ms, left=False)
    if status in {408, 409} or status >= 500:
        return Offline(_with_code(str(status), reply))
    return Blocked(_with_code(f"{status}: {BLOCKING.get(status, 'refused')}", reply), left=False)


def _read_answer(reply: HttpReply, record: RequestRecord, row: Escalation) -> Outcome:
    try:
        completion = _COMPLETION.decode(reply.body)
    except _NOT_THAT_JSON:
        if _has_choices(reply):
            return Rejected("the answer cannot be read as a chat completion", used=UNCOUNTED)
        return Offline("200, but not a chat completion: something else answers", left=True, portal=True)
    if completion.outrider is not None and (other := _read_outrider(completion.outrider)) is not None:
        return other
    used = Used(
        _tokens(completion.usage, "prompt_tokens"),
        _tokens(completion.usage, "completion_tokens"),
        completion.model or "",
    )
    found = _read_choice(completion, reply, record, row, used)
    # An answer that is of no use was paid for all the same.
    return msgspec.structs.replace(found, used=used) if isinstance(found, Rejected) else found


def _read_choice(
    completion: _Completion, reply: HttpReply, record: RequestRecord, row: Escalation, used: Used
) -> Delivered | Rejected:
    choice = completion.choices[0] if completion.choices else None
    if choice is None:
        return Rejected("the answer has no choices")
    if choice.finish_reason == "content_filter":
        return Rejected("content_filter")
    if choice.message.refusal:
        return Rejected("the target's model refuses")
    text = choice.message.content or ""
    request = record.request
    calls = tuple(
        ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
        for call in choice.message.tool_calls or ()
    )
    if not calls and not text.strip():
        return Rejected("the answer is empty")
    if request is not None and not calls and not _has_format(text, request.response_format):
        return Rejected("the answer has not the format that was asked for")
    if calls and (request is None or not _may_be_called(calls, request.tools)):
        return Rejected("the answer calls a tool that may not be called")
    verdict = None
    if effective(record, row) is Handoff.VERIFY:
        judged = read_verdict(text, record)
        if judged is None:
            return Rejected("the reply has no readable verdict")
        verdict, text = judged.verdict, judged.text
    if request is not None and request.labels:
        label = read_label(text, request.labels)
        if label is None:
            return Rejected("the reply is none of the labels")
        text = label
    if request is not None and request.response_format and request.response_format.kind is FormatKind.ENUM:
        text = text.strip()
    return Delivered(
        CloudAnswer(
            text=text,
            tool_calls=calls,
            finish_reason=choice.finish_reason,
            model=used.model,
            prompt_tokens=used.input_tokens,
            output_tokens=used.output_tokens,
            verdict=verdict,
            raw_sha256=hashlib.sha256(reply.body).hexdigest(),
        )
    )


def _has_choices(reply: HttpReply) -> bool:
    """Whether this is the target after all, which says something odd: no captive portal speaks so."""
    try:
        _HAS_CHOICES.decode(reply.body)
    except _NOT_THAT_JSON:
        return False
    return True


def _tokens(usage: object, name: str) -> int:
    found = usage.get(name) if isinstance(usage, dict) else None
    return found if isinstance(found, int) and 0 <= found <= _MOST_TOKENS else 0


def _has_format(text: str, output: OutputFormat | None) -> bool:
    """Return whether a reply can be what was asked for; whether it validates is for schema_check."""
    match output.kind if output else None:
        case FormatKind.JSON_OBJECT | FormatKind.JSON_SCHEMA as kind:
            try:
                value = msgspec.json.decode(text)
            except _NOT_THAT_JSON:
                return False
            return kind is FormatKind.JSON_SCHEMA or isinstance(value, dict)
        case FormatKind.ENUM:
            return output is None or text.strip() in msgspec.json.decode(output.source, type=list[str])
        case _:
            return True


def _may_be_called(calls: Sequence[ToolCall], tools: Tools | None) -> bool:
    known = {function.name for function in tools.callable} if tools else set()
    return all(call.name in known for call in calls)


def _read_outrider(told: _Outrider) -> Outcome | None:
    """Return the outcome if the answer of another Outrider is not its last word."""
    if told.decision == "uncertain":
        return Rejected("uncertain")
    if told.decision != "queued" or told.state == "resolved":
        return None
    if told.state in {"unresolved", "cancelled", "failed"}:
        return Rejected(f"{told.state} at the target")
    return Held("the target has queued it")


def retry_after(headers: Mapping[str, str], now_ms: int) -> int | None:
    """Return until when to wait, from ``retry-after-ms`` or ``retry-after`` (seconds or a date).

    At least a second from now, at most a day; None when there is no readable header.
    """
    wait_ms = _number(headers.get("retry-after-ms"))
    if wait_ms is None and (text := headers.get("retry-after")) is not None:
        seconds = _number(text)
        wait_ms = seconds * 1000 if seconds is not None else _until_date(text, now_ms)
    if wait_ms is None:
        return None
    return now_ms + round(min(max(wait_ms, 1000), LONGEST_RETRY_AFTER_MS))


def _number(text: str | None) -> float | None:
    return float(text) if text is not None and re.fullmatch(r"\d{1,12}(\.\d{0,6})?", text.strip()) else None


def _until_date(text: str, now_ms: int) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp() * 1000 - now_ms
    except (ValueError, OverflowError):
        return None


def _is_portal(status: int) -> bool:
    return 200 < status < 400 or status == 511


def _portal_reason(reply: HttpReply) -> str:
    if 300 <= reply.status < 400:
        return f"{reply.status}: redirected elsewhere, not followed"
    return f"{reply.status}: something else answers"


def _error_code(reply: HttpReply) -> str | None:
    try:
        detail = _ERROR.decode(reply.body).error
    except _NOT_THAT_JSON:
        return None
    named = str(detail.code or detail.type or "")
    return named if _CODE.fullmatch(named) else None


def _with_code(reason: str, reply: HttpReply) -> str:
    code = _error_code(reply)
    return f"{reason} ({code})" if code else reason
